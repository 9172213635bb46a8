use http::{HeaderMap, header};

/// Whether a client names a media type among those it takes, other than to say that it does not (`q=0`).
pub fn accepts(headers: &HeaderMap, kind: &str) -> bool {
    let accepted = headers.get_all(header::ACCEPT).into_iter();
    accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let same = parts.next().is_some_and(|found| found.eq_ignore_ascii_case(kind));
            same && !parts.any(|part| ["q=0", "q=0.0", "q=0.00", "q=0.000"].contains(&part))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_taken_when_it_is_named() {
        let cases = [
            ("application/x-ndjson", true),
            ("application/json, Application/X-NDJSON;q=0.5", true),
            ("application/x-ndjson;q=0", false),
            ("*/*", false),
            ("application/x-ndjsonx", false),
        ];
        for (value, expected) in cases {
            let headers = HeaderMap::from_iter([(header::ACCEPT, value.parse().unwrap())]);
            assert_eq!(accepts(&headers, "application/x-ndjson"), expected, "{value}");
        }
    }
}
