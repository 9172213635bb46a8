//! Requests about encryption: encrypted copies, plain copies, key slots, the master key.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Options;
use super::values::scalar_map;
use crate::model::{Labels, SecretId, text_enum};

/// Make a new, encrypted image with the content of this one. An encrypted image gets a new volume key by it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EncryptRequest {
    /// Name of the new image, unique in the pool.
    pub name: String,
    /// Pool of the new image; the source's pool when absent.
    pub pool: Option<String>,
    /// Format of the new image: `luks`, or one that can hold LUKS-encrypted data (`qcow2`).
    #[serde(default = "luks")]
    #[schema(default = "luks")]
    pub format: String,
    /// Options of that format (`iter-time`, `cipher-alg`; for qcow2 `encrypt.iter-time` and so on).
    #[serde(default, deserialize_with = "scalar_map")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub options: Options,
    /// The passphrase of the new image: a secret's id. The image remembers it.
    #[schema(value_type = Uuid)]
    pub secret: SecretId,
    /// Take the content of this internal snapshot.
    pub snapshot: Option<String>,
    /// Labels of the new image.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Labels,
    /// Read the result back and compare its digest with the source's before the job succeeds.
    #[serde(default)]
    pub verify: bool,
    /// Bytes per second.
    pub rate_limit: Option<u64>,
    /// Higher runs earlier.
    pub priority: Option<i32>,
}

fn luks() -> String {
    "luks".to_owned()
}

/// Make a new image that is not encrypted with the content of this one, which is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecryptRequest {
    /// Name of the new image, unique in the pool.
    pub name: String,
    /// Pool of the new image; the source's pool when absent.
    pub pool: Option<String>,
    /// Format of the new image; when absent the source's, or `raw` where that is encryption itself (LUKS).
    pub format: Option<String>,
    /// Options of that format.
    #[serde(default, deserialize_with = "scalar_map")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub options: Options,
    /// The passphrase of the source, a secret's id, where the source names none of its own.
    #[schema(value_type = Option<Uuid>)]
    pub secret: Option<SecretId>,
    /// Write compressed clusters.
    #[serde(default)]
    pub compress: bool,
    /// Take the content of this internal snapshot.
    pub snapshot: Option<String>,
    /// Labels of the new image.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Labels,
    /// Read the result back and compare its digest with the source's before the job succeeds.
    #[serde(default)]
    pub verify: bool,
    /// Bytes per second.
    pub rate_limit: Option<u64>,
    /// Higher runs earlier.
    pub priority: Option<i32>,
}

/// Change the key slots of an encrypted image, in place. The data is not touched. `info` lists the slots.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RekeyRequest {
    /// What to do.
    pub change: KeyChange,
    /// The passphrase to add: a secret's id. Needed to add and to change.
    #[schema(value_type = Option<Uuid>)]
    pub new_secret: Option<SecretId>,
    /// A passphrase that opens the image now: a secret's id. To add, it unlocks the image; a change puts the new one in its place;
    /// an erasure empties the slots that it opens. To add and to change, the one that the image names when absent.
    #[schema(value_type = Option<Uuid>)]
    pub old_secret: Option<SecretId>,
    /// The key slot to fill, which must be empty, or to erase. The first empty one is filled when absent.
    pub slot: Option<u32>,
    /// Milliseconds that deriving the new key is to take on this machine; 2000 when neither this nor `iterations` is given.
    pub iter_time: Option<u64>,
    /// PBKDF2 iterations of the new key, or passes where Argon2 opened the image, in place of a time.
    pub iterations: Option<u32>,
    /// Erase even the last key, or the last one that the image's own secret opens; nobody can read the data without a key.
    #[serde(default)]
    pub force: bool,
    /// Higher runs earlier.
    pub priority: Option<i32>,
}

text_enum! {
    /// How key slots are changed.
    KeyChange, "change of keys" {
        /// One more passphrase opens the image.
        Add = "add",
        /// Another passphrase in the place of an old one, which opens nothing any more. If the image names the old one as its secret,
        /// it names the new one from then on.
        Change = "change",
        /// A passphrase or slot opens nothing any more.
        Erase = "erase",
    }
}

/// Seal every secret under the new master key.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RotateMasterKeyRequest {
    /// Higher runs earlier.
    pub priority: Option<i32>,
}
