use http::{HeaderMap, header};

/// Whether a client would rather have `kind`, a media type that it must name, than `usual`. With the same weight (`q`) for both it would.
pub fn prefers(headers: &HeaderMap, kind: &str, usual: &str) -> bool {
    let accepted = headers.get_all(header::ACCEPT).into_iter();
    let ranges: Vec<_> = accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(weighed)
        .collect();
    let weight_of = |name: &str| {
        let named = ranges.iter().filter(|(range, _)| range.eq_ignore_ascii_case(name));
        named.map(|(_, weight)| *weight).reduce(f32::max)
    };
    // The most specific range counts (RFC 9110 section 12.5.1).
    let group = usual.split('/').next().unwrap_or_default();
    let other = weight_of(usual).or_else(|| weight_of(&format!("{group}/*")));
    let other = other.or_else(|| weight_of("*/*")).unwrap_or(0.0);
    weight_of(kind).is_some_and(|weight| weight > 0.0 && weight >= other)
}

/// A media range and its weight, which is 1 where it does not say.
fn weighed(range: &str) -> (&str, f32) {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    let weight = weight.and_then(|text| text.parse().ok());
    (
        name,
        weight.filter(|weight| (0.0..=1.0).contains(weight)).unwrap_or(1.0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_taken_when_it_is_named_and_nothing_else_is_preferred() {
        let cases = [
            ("application/x-ndjson", true),
            ("application/json, Application/X-NDJSON", true),
            ("application/json;q=0.5, application/x-ndjson;q=0.5", true),
            ("application/json;q=0.4, application/x-ndjson;q=0.5", true),
            ("application/json, application/x-ndjson;q=0.1", false),
            ("application/json, Application/X-NDJSON;Q=0.5", false),
            ("application/x-ndjson; q=0.9, application/*", false),
            ("application/x-ndjson;q=0.9, */*", false),
            ("application/x-ndjson;q=0.9, application/json;q=0.8, */*", true),
            ("application/x-ndjson, */*;q=0.1", true),
            ("application/x-ndjson;q=0.1", true),
            ("application/x-ndjson;q=0", false),
            ("application/x-ndjson;q=0.000", false),
            ("*/*", false),
            ("application/x-ndjsonx", false),
            ("", false),
        ];
        for (value, expected) in cases {
            let headers = HeaderMap::from_iter([(header::ACCEPT, value.parse().unwrap())]);
            let found = prefers(&headers, "application/x-ndjson", "application/json");
            assert_eq!(found, expected, "{value}");
        }
    }

    #[test]
    fn what_prometheus_asks_for_is_openmetrics() {
        let value = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                     text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let headers = HeaderMap::from_iter([(header::ACCEPT, value.parse().unwrap())]);
        assert!(prefers(&headers, "application/openmetrics-text", "text/plain"));
    }
}
