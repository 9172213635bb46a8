//! JSON bodies: limited in size, read strictly, refused with the path of the field at fault.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, IgnoredAny};
use vdisk_service::ServiceError;

use super::words::plain;
use crate::access::limits::BODY_TIME;
use crate::errors::TransportCode;
use crate::http::problem::{Answer, Problem};

/// Bytes that a JSON body may have.
pub const JSON_LIMIT: usize = 1 << 20;

/// A JSON body.
pub struct JsonBody<T>(pub T);

/// A JSON body that may be left out when all of it is optional.
pub struct OptionalBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Answer<Self> {
        let (parts, body) = request.into_parts();
        require_json(&parts.headers)?;
        parse(&collect(body).await?).map(Self)
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Answer<Self> {
        let (parts, body) = request.into_parts();
        let bytes = collect(body).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        require_json(&parts.headers)?;
        parse(&bytes).map(Self)
    }
}

/// Insisting on the type also keeps web pages of other sites out: they cannot send it without asking first.
pub(super) fn require_json(headers: &HeaderMap) -> Answer<()> {
    let given = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let essence = given.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = format!(
        "expected Content-Type application/json, found '{}'",
        given.escape_debug()
    );
    Err(Problem::transport(TransportCode::UnsupportedMediaType, detail))
}

pub(in crate::http) async fn collect(body: axum::body::Body) -> Answer<Bytes> {
    let limited = Limited::new(body, JSON_LIMIT);
    let Ok(collected) = tokio::time::timeout(BODY_TIME, limited.collect()).await else {
        let detail = format!("a JSON body arrives within {} seconds", BODY_TIME.as_secs());
        return Err(Problem::transport(TransportCode::BodyTooSlow, detail));
    };
    match collected {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let detail = format!("a JSON body may have {JSON_LIMIT} bytes");
            Err(Problem::transport(TransportCode::BodyTooLarge, detail))
        }
        Err(error) => Err(Problem::transport(
            TransportCode::MalformedBody,
            format!("the body broke off: {error}"),
        )),
    }
}

pub(in crate::http) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Answer<T> {
    // Fields in the order of a declaration of ours are no contract.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(ServiceError::invalid(".", "expected an object, found an array").into());
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() {
            return wrong(&path, &inner.to_string());
        }
        // serde_json says the same of what is no JSON and of JSON that is not what was expected there, a number in the place of a choice.
        if serde_json::from_slice::<IgnoredAny>(bytes).is_err() {
            return Problem::transport(TransportCode::MalformedBody, format!("the body is not JSON: {inner}"));
        }
        // Taken apart before, it is refused in words.
        let reread = serde_json::from_slice(bytes).ok().map(parse_value::<T>);
        let refused = reread.and_then(Result::err);
        refused.unwrap_or_else(|| wrong(&path, &inner.to_string()))
    })?;
    deserializer.end().map_err(|error| {
        Problem::transport(
            TransportCode::MalformedBody,
            format!("something follows the JSON value: {error}"),
        )
    })?;
    Ok(value)
}

/// Reads a request from JSON that was taken apart before.
pub(super) fn parse_value<T: DeserializeOwned>(value: serde_json::Value) -> Answer<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        wrong(&path, &error.into_inner().to_string())
    })
}

fn wrong(path: &str, detail: &str) -> Problem {
    ServiceError::invalid(&field_at(path, detail), plain(detail)).into()
}

/// The path of the field at fault. For a field that is missing or there twice the path is that of the object.
fn field_at(path: &str, detail: &str) -> String {
    match (named_field(detail), path) {
        (Some(field), ".") => field.to_owned(),
        (Some(field), object) => format!("{object}.{field}"),
        (None, path) => path.to_owned(),
    }
}

/// The field that serde says is missing from an object, or there twice.
pub(super) fn named_field(detail: &str) -> Option<&str> {
    let name = detail
        .strip_prefix("missing field `")
        .or_else(|| detail.strip_prefix("duplicate field `"))?;
    name.split('`').next()
}

#[cfg(test)]
mod tests {
    use vdisk_service::request::{CheckRequest, CreateImage, ImportImage};

    use super::*;

    #[test]
    fn refusals_name_the_field() {
        let cases: [(&str, u16, Option<&str>); 9] = [
            (r#"{"name": "a", "name": "b", "format": "raw"}"#, 422, Some("name")),
            (r#"["a"]"#, 422, Some(".")),
            (r#"{"name": "a"}"#, 422, Some("format")),
            ("not json", 400, None),
            (r#"{"name": "a", "format": "raw"} x"#, 400, None),
            (r#"{"name": "a", "format": "raw", "colour": 1}"#, 422, Some("colour")),
            (
                r#"{"name": "a", "format": "raw", "virtual_size": "big"}"#,
                422,
                Some("virtual_size"),
            ),
            (
                r#"{"name": "a", "format": "raw", "virtual_size": -1}"#,
                422,
                Some("virtual_size"),
            ),
            (
                r#"{"name": "a", "format": "raw", "labels": {"a": 1}}"#,
                422,
                Some("labels.a"),
            ),
        ];
        for (body, status, field) in cases {
            let problem = parse::<CreateImage>(body.as_bytes()).unwrap_err();
            assert_eq!((problem.status, problem.field.as_deref()), (status, field), "{body}");
        }
    }

    #[test]
    fn json_that_is_not_what_a_choice_takes_is_refused_with_the_field() {
        let check = |body: &str| parse::<CheckRequest>(body.as_bytes()).map(drop).unwrap_err();
        for value in ["true", "1", "[]", "{}", "1e999", "\"\\ud800\""] {
            let problem = check(&format!("{{\"repair\": {value}}}"));
            assert_eq!(
                (problem.status, problem.field.as_deref()),
                (422, Some("repair")),
                "{value}"
            );
        }
        let detail = check(r#"{"repair": true}"#).detail;
        assert!(detail.contains("boolean, expected one of `leaks`, `all`"), "{detail}");
        for source in [
            "{}",
            "true",
            "null",
            r#"{"upload": true, "url": "x"}"#,
            r#"{"url": "x", "url": "x"}"#,
        ] {
            let body = format!("{{\"name\": \"a\", \"source\": {source}}}");
            let problem = parse::<ImportImage>(body.as_bytes()).unwrap_err();
            assert_eq!(
                (problem.status, problem.field.as_deref()),
                (422, Some("source")),
                "{source}"
            );
        }
        for broken in [
            r#"{"source": tru}"#,
            r#"{"source": {}"#,
            r#"{"source": {"url": "x", "url"}}"#,
            r#"{"source": {}} x"#,
        ] {
            let problem = parse::<ImportImage>(broken.as_bytes()).map(drop).unwrap_err();
            assert_eq!((problem.status, problem.code), (400, "malformed_body"), "{broken}");
        }
    }
}
