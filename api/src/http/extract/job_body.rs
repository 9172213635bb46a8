//! Requests that lead to jobs. With `"dry_run": true` they ask what the job would do.

use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use vdisk_service::ServiceError;

use super::body::{collect, parse, parse_value, require_json};
use crate::http::problem::{Answer, Problem};

/// The field that makes a request a question.
const DRY_RUN: &str = "dry_run";

/// A JSON body.
pub struct JobBody<T> {
    /// The request.
    pub request: T,
    /// Whether it is a question only.
    pub dry_run: bool,
}

/// As [`JobBody`], and may be left out when all of it is optional.
pub struct OptionalJobBody<T>(pub JobBody<T>);

#[derive(Deserialize)]
struct Asked {
    #[serde(default, deserialize_with = "given")]
    dry_run: Option<Value>,
}

/// A field that is there, though it may be `null`.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JobBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Answer<Self> {
        let (parts, body) = request.into_parts();
        require_json(&parts.headers)?;
        read(&collect(body).await?)
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJobBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Answer<Self> {
        let (parts, body) = request.into_parts();
        let bytes = collect(body).await?;
        if bytes.is_empty() {
            let (request, dry_run) = (T::default(), false);
            return Ok(Self(JobBody { request, dry_run }));
        }
        require_json(&parts.headers)?;
        read(&bytes).map(Self)
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Answer<JobBody<T>> {
    // What is no object is refused by the request's own type.
    let dry_run = match serde_json::from_slice::<Asked>(bytes)
        .ok()
        .and_then(|asked| asked.dry_run)
    {
        None => {
            let (request, dry_run) = (parse(bytes)?, false);
            return Ok(JobBody { request, dry_run });
        }
        Some(Value::Bool(dry_run)) => dry_run,
        Some(Value::Null) => false,
        Some(_) => return Err(ServiceError::invalid(DRY_RUN, "dry_run is true or false").into()),
    };
    let mut value: Value = parse(bytes)?;
    if let Value::Object(fields) = &mut value {
        fields.shift_remove(DRY_RUN);
    }
    let request = parse_value(value)?;
    Ok(JobBody { request, dry_run })
}

#[cfg(test)]
mod tests {
    use vdisk_service::request::ResizeRequest;

    use super::*;

    #[test]
    fn a_dry_run_is_read_as_strictly_as_the_request() {
        let cases = [
            (r#"{"virtual_size": 512}"#, Ok(false)),
            (r#"{"virtual_size": 512, "dry_run": true}"#, Ok(true)),
            (r#"{"virtual_size": 512, "dry_run": false}"#, Ok(false)),
            (r#"{"virtual_size": 512, "dry_run": null}"#, Ok(false)),
            (r#"{"virtual_size": 512, "dry_run": 1}"#, Err("dry_run")),
            (r#"{"dry_run": true}"#, Err("virtual_size")),
            (r#"{"virtual_size": 512, "dry_run": true, "colour": 1}"#, Err("colour")),
            (r#"{"virtual_size": -1, "dry_run": true}"#, Err("virtual_size")),
        ];
        for (body, expected) in cases {
            let found = read::<ResizeRequest>(body.as_bytes());
            let found = found
                .map(|body| body.dry_run)
                .map_err(|problem| problem.field.unwrap_or_default());
            assert_eq!(
                found.as_ref().map_err(|field| &**field),
                expected.as_ref().map_err(|field| *field),
                "{body}"
            );
        }
    }
}
