//! Ids and names in paths. An id that is no UUID belongs to nothing, so it is answered like any unknown one.

use std::borrow::Cow;

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use uuid::Uuid;
use vdisk_service::ServiceError;

use crate::errors::TransportCode;
use crate::http::problem::{Answer, Problem};

/// An id that every example uses.
const EXAMPLE_ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

macro_rules! path_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        pub struct $name(pub Uuid);

        impl<S: Send + Sync> FromRequestParts<S> for $name {
            type Rejection = Problem;

            async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
                let text = raw(parts, state, "id").await?;
                let id = text.parse().map_err(|_| Problem::from(ServiceError::not_found($kind, text.escape_debug())))?;
                Ok(Self(id))
            }
        }

        impl IntoParams for $name {
            fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
                vec![id_parameter(concat!("Id of the ", $kind, "."))]
            }
        }
    };
}

path_id!(
    /// `{id}` of an image.
    ImagePath, "image"
);
path_id!(
    /// `{id}` of a job.
    JobPath, "job"
);
path_id!(
    /// `{id}` of a secret.
    SecretPath, "secret"
);

path_id!(
    /// `{id}` of a token.
    TokenPath, "token"
);

path_id!(
    /// `{id}` of a webhook.
    WebhookPath, "webhook"
);

/// `{pool}`.
pub struct PoolPath(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PoolPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        raw(parts, state, "pool").await.map(Self)
    }
}

impl IntoParams for PoolPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![name_parameter("pool", "Name of the pool.", "default")]
    }
}

/// `{name}` of a snapshot.
pub struct SnapshotPath(pub String);

impl<S: Send + Sync> FromRequestParts<S> for SnapshotPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        raw(parts, state, "name").await.map(Self)
    }
}

impl IntoParams for SnapshotPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![name_parameter("name", "Name or id of the snapshot.", "before-upgrade")]
    }
}

async fn raw<S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> Answer<String> {
    let unreadable = |_| {
        Problem::transport(
            TransportCode::MalformedRequest,
            "the path is not UTF-8 after percent-decoding",
        )
    };
    let params = RawPathParams::from_request_parts(parts, state)
        .await
        .map_err(unreadable)?;
    let value = params
        .iter()
        .find(|(key, _)| *key == name)
        .map(|(_, value)| Cow::from(value));
    Ok(value.unwrap_or_default().into_owned())
}

fn id_parameter(description: &str) -> Parameter {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)));
    path_parameter("id", description, schema, EXAMPLE_ID)
}

fn name_parameter(name: &str, description: &str, example: &str) -> Parameter {
    path_parameter(
        name,
        description,
        ObjectBuilder::new().schema_type(Type::String),
        example,
    )
}

fn path_parameter(name: &str, description: &str, schema: ObjectBuilder, example: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(description))
        .schema(Some(schema))
        .example(Some(example.into()))
        .build()
}
