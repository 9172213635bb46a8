use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::model::SecretId;

/// Options of a format by name, as `-o name=value` gives them. JSON numbers and booleans are taken as their text.
pub type Options = BTreeMap<String, String>;

/// Secrets by the name that options refer to them by (`encrypt.key-secret`), each an id of the service's secrets.
pub type SecretRefs = BTreeMap<String, SecretId>;

/// A secret to store.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSecret {
    /// Unique name, `[A-Za-z0-9._-]{1,128}`.
    pub name: String,
    /// The value as it is to be used; never returned.
    #[serde(deserialize_with = "secret_text")]
    #[schema(value_type = String, format = Password)]
    pub value: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for NewSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewSecret")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

pub(super) fn secret_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zeroizing<Vec<u8>>, D::Error> {
    Ok(Zeroizing::new(String::deserialize(deserializer)?.into_bytes()))
}

/// Reads a map whose values are text, numbers or booleans.
pub(super) fn scalar_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Options, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Scalar {
        Bool(bool),
        Integer(i64),
        Large(u64),
        Text(String),
    }
    let scalars = BTreeMap::<String, Scalar>::deserialize(deserializer)?;
    let text = |scalar| match scalar {
        Scalar::Bool(true) => "on".to_owned(),
        Scalar::Bool(false) => "off".to_owned(),
        Scalar::Integer(number) => number.to_string(),
        Scalar::Large(number) => number.to_string(),
        Scalar::Text(text) => text,
    };
    Ok(scalars.into_iter().map(|(name, value)| (name, text(value))).collect())
}

/// Reads a field that may be `null` but must be there.
pub(super) fn required_or_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}
