//! What the service knows: images, jobs, pools, events, secrets. Each serializes as the JSON contract says.

mod access;
mod event;
mod format;
mod image;
mod inspection;
mod job;
mod layout;
mod named;
mod page;
mod plan;
mod pool;
mod secret;
mod snapshot;
mod statistics;
mod webhook;

pub use access::{ANONYMOUS, AuditEntry, Role, Token, TokenId};
pub use event::{Event, EventKind};
pub use format::{CreateOptionInfo, FormatInfo, OptionType};
pub use image::{Image, ImageId, ImageState, Labels};
pub use inspection::{Detected, Finding, FoundReference, Inspection, InspectionLimits, ParsedIn, Severity, Verdict};
pub use job::{Job, JobError, JobId, JobKind, JobProgress, JobState, JobStep};
pub use layout::{ChainLayer, Extent, MapPage, MeasureReport};
pub(crate) use named::Named;
pub use page::Page;
pub use plan::{Amount, Bound, JobPlan, Loss, LossKind};
pub use pool::Pool;
pub use secret::{Secret, SecretId};
pub use snapshot::Snapshot;
pub use statistics::{JobSum, Statistics};
pub use webhook::{Webhook, WebhookId};

/// Gives an enum of unit variants its stable text form, in JSON, in the schema and in the database alike. Each variant has
/// one line of documentation.
macro_rules! text_enum {
    ($(#[$meta:meta])* $name:ident, $what:literal {
        $(#[doc = $doc:literal] $(#[$variant_meta:meta])* $variant:ident = $text:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
        pub enum $name {
            $(#[doc = $doc] $(#[$variant_meta])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The stable text form.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        // Derived, it would be a choice with contents, in whose place JSON readers take a number for a mistake in the JSON.
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str($crate::model::Named(Self::ALL, Self::as_str))
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                let docs = [$(concat!("- `", $text, "`:", $doc)),*].join("\n");
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .enum_values(Some(Self::ALL.iter().map(|value| value.as_str())))
                    .description(Some(docs))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::ServiceError;

            fn from_str(text: &str) -> Result<Self, crate::ServiceError> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text).ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|value| value.as_str()).collect();
                    let public = format!("'{text}' is no {}; expected one of {}", $what, known.join(", "));
                    crate::ServiceError::invalid($what, public)
                })
            }
        }
    };
}
pub(crate) use text_enum;
