use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::values::scalar_map;
use super::{Options, SecretRefs};
use crate::model::{Image, ImageId, ImageState, Job, Labels};

/// How requests name another image.
pub type ImageRef = ImageId;

/// A new, empty image, or an empty overlay on a base.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateImage {
    /// Name, unique in the pool.
    pub name: String,
    /// Pool; the default pool when absent.
    pub pool: Option<String>,
    /// Format driver.
    pub format: String,
    /// Bytes the guest sees; may be left out when there is a base to take it from.
    pub virtual_size: Option<u64>,
    /// Base of the new overlay.
    #[schema(value_type = Option<Uuid>)]
    pub backing: Option<ImageRef>,
    /// Options of the format.
    #[serde(default, deserialize_with = "scalar_map")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub options: Options,
    /// Free-form keys and values.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Labels,
    /// Secrets by the names that `options` give them, or by role (`encrypt.key-secret`). The image remembers those that open it. One that
    /// nothing uses is refused: a key alone makes no image encrypted where an option says whether it is (`encrypt.format`).
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Uuid>)]
    pub secrets: SecretRefs,
}

/// An image whose bytes exist already.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportImage {
    /// Name, unique in the pool.
    pub name: String,
    /// Pool; the default pool when absent.
    pub pool: Option<String>,
    /// Claimed format. When absent the format is detected once and reported; a raw image should always be claimed.
    pub format: Option<String>,
    /// Where the bytes come from.
    pub source: ImportSource,
    /// Convert to this format on the way in; not for uploads.
    pub target_format: Option<String>,
    /// Base that the file's own backing reference stands for; needed when the file has one.
    #[schema(value_type = Option<Uuid>)]
    pub backing: Option<ImageRef>,
    /// Free-form keys and values.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Labels,
}

/// Where an import's bytes come from. In JSON one of `{"upload": true}`, `{"url": "..."}`, `{"pool_file": "..."}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ImportSource {
    /// The client sends them; must be `true`.
    Upload(bool),
    /// The service fetches them. The job shows the URL without its query, which may be a signature.
    Url(String),
    /// They lie in the pool's folder under this name already; the file is taken into the inventory. With `target_format` it is read, and
    /// stays as it is beside the new image.
    PoolFile(String),
}

impl utoipa::PartialSchema for ImportSource {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, Type};
        let field = |kind, text: &str| ObjectBuilder::new().schema_type(kind).description(Some(text));
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some("Where an import's bytes come from: exactly one of the fields."))
            .property("upload", field(Type::Boolean, "The client sends them; must be `true`."))
            .property("url", field(Type::String, "The service fetches them."))
            .property(
                "pool_file",
                field(
                    Type::String,
                    "They lie in the pool's folder under this name already; the file is taken into the inventory. \
                     With `target_format` it is read, and stays as it is beside the new image.",
                ),
            )
            .min_properties(Some(1))
            .max_properties(Some(1))
            .additional_properties(Some(utoipa::openapi::schema::AdditionalProperties::FreeForm(false)))
            .into()
    }
}

impl ToSchema for ImportSource {}

/// What an import leads to.
#[derive(Clone, Debug)]
pub enum ImportOutcome {
    /// The record is there; send the file with [`crate::Service::upload`].
    Uploading(Image),
    /// A job takes the file in.
    Queued(Job),
}

/// Changes of a record. Absent fields stay as they are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateImage {
    /// New name.
    pub name: Option<String>,
    /// New labels; replaces all.
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub labels: Option<Labels>,
    /// Whether deletion and change are refused.
    pub protected: Option<bool>,
    /// The secrets that open the image, by role (`encrypt.key-secret`; `key-secret` for LUKS); replaces all.
    #[schema(value_type = Option<BTreeMap<String, Uuid>>)]
    pub secrets: Option<SecretRefs>,
}

/// Which images a list shows. Absent fields do not narrow it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ImageFilter {
    /// Only this pool's.
    pub pool: Option<String>,
    /// Only this format's.
    pub format: Option<String>,
    /// Only the image of exactly this name.
    pub name: Option<String>,
    /// `key` (has the label) or `key=value`.
    pub label: Option<String>,
    /// Only those in this state.
    pub state: Option<ImageState>,
    /// Only overlays directly on this base.
    pub backing: Option<ImageRef>,
}
