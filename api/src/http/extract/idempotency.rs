use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::request::Parts;
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use vdisk_service::ServiceError;
use vdisk_service::request::Call;

use crate::http::problem::{Answer, Problem};

/// The `Idempotency-Key` header of a POST.
pub struct IdempotencyKey(pub Call);

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        Ok(Self(call_of(&parts.headers)?))
    }
}

impl IntoParams for IdempotencyKey {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(255));
        let description = "The same key with the same request does nothing again: it gets the status of the first \
                           answer and what that made as it is now, or `not_found` where what it made was deleted \
                           since; with another request it is refused with `idempotency_conflict`. 1 to 255 visible \
                           ASCII characters.";
        let parameter = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(description))
            .schema(Some(schema))
            .example(Some("5f0c2b9e".into()));
        vec![parameter.build()]
    }
}

/// What goes with a call, from its headers or, for gRPC, its metadata.
///
/// # Errors
/// `invalid_argument` for a key that is not 1 to 255 visible ASCII characters.
pub fn call_of(headers: &HeaderMap) -> Result<Call, ServiceError> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(Call::default());
    };
    match value.to_str() {
        Ok(key) if (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Call {
            idempotency_key: Some(key.to_owned()),
        }),
        _ => Err(ServiceError::invalid(
            "Idempotency-Key",
            "a key has 1 to 255 visible ASCII characters",
        )),
    }
}
