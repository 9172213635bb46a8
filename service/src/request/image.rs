use serde::{Deserialize, Serialize};

use super::values::scalar_map;
use super::{Options, SecretRefs};
use crate::model::{Image, ImageId, ImageState, Job, Labels};

/// How requests name another image.
pub type ImageRef = ImageId;

/// A new, empty image, or an empty overlay on a base.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    pub backing: Option<ImageRef>,
    /// Options of the format.
    #[serde(default, deserialize_with = "scalar_map")]
    pub options: Options,
    /// Free-form keys and values.
    #[serde(default)]
    pub labels: Labels,
    /// Secrets that `options` refer to.
    #[serde(default)]
    pub secrets: SecretRefs,
}

/// An image whose bytes exist already.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// Convert to this format on the way in.
    pub target_format: Option<String>,
    /// Base that the file's own backing reference stands for; needed when the file has one.
    pub backing: Option<ImageRef>,
    /// Free-form keys and values.
    #[serde(default)]
    pub labels: Labels,
}

/// Where an import's bytes come from. In JSON one of `{"upload": true}`, `{"url": "..."}`, `{"pool_file": "..."}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ImportSource {
    /// The client sends them; must be `true`.
    Upload(bool),
    /// The service fetches them.
    Url(String),
    /// They lie in the pool's folder under this name already; the file is moved into the inventory.
    PoolFile(String),
}

/// What an import leads to.
#[derive(Clone, Debug)]
pub enum ImportOutcome {
    /// The record is there; send the file with [`crate::Service::upload`].
    Uploading(Image),
    /// A job takes the file in.
    Queued(Job),
}

/// Changes of a record. Absent fields stay as they are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateImage {
    /// New name.
    pub name: Option<String>,
    /// New labels; replaces all.
    pub labels: Option<Labels>,
    /// Whether deletion and change are refused.
    pub protected: Option<bool>,
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
