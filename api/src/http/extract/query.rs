use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::de::DeserializeOwned;
use vdisk_service::ServiceError;

use super::body::named_field;
use super::words::plain;
use crate::http::problem::{Answer, Problem};

/// The query, read strictly.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        match axum::extract::Query::<T>::try_from_uri(&parts.uri) {
            Ok(query) => Ok(Self(query.0)),
            Err(rejection) => {
                let text = rejection.body_text();
                let detail = text
                    .strip_prefix("Failed to deserialize query string: ")
                    .unwrap_or(&text);
                let (field, detail) = detail.split_once(": ").unwrap_or(("", detail));
                let field = if field.contains(' ') { "" } else { field };
                let field = named_field(detail).unwrap_or(field);
                Err(ServiceError::invalid(field, format!("query: {}", plain(detail))).into())
            }
        }
    }
}
