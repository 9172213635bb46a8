//! `blkdebug`: QEMU's driver for tests. Here it is a plain layer over its image: fault rules are refused, alignment limits are taken as
//! they make no difference to what is read or written.

use super::protocol::{OpenStorage, open as open_protocol, open_name, refuse_rest};
use super::shown::Shown;
use super::{Access, Keys, Opener};
use crate::app::Failure;

/// Limits that only tell callers how to cut their requests.
const LIMITS: &[&str] = &[
    "align",
    "max-transfer",
    "opt-write-zero",
    "max-write-zero",
    "opt-discard",
    "max-discard",
];

/// Opens what lies below: `image` (a name in `blkdebug:CONFIG:NAME`) or `image.*`.
pub fn open(opener: &Opener, mut keys: Keys, access: &Access) -> Result<OpenStorage, Failure> {
    let (config, image) = match keys.take("filename") {
        Some(name) => split(&name)?,
        None => (keys.take("config").unwrap_or_default(), None),
    };
    if !config.is_empty() {
        return Err(Failure::new(format!("blkdebug rules ('{config}') are not supported")));
    }
    for limit in LIMITS {
        if let Some(text) = keys.take(limit) {
            crate::text::size::size(limit, &text)?;
        }
    }
    let below = keys.take_below("image");
    let by_name = image.or_else(|| keys.take("x-image"));
    refuse_rest(&keys, "blkdebug")?;
    let inner = match by_name {
        Some(name) => open_name(opener, &name, access)?,
        None => open_protocol(opener, below, access)?,
    };
    let shown = Shown::plain("blkdebug", &format!("blkdebug::{}", inner.shown.name()));
    Ok(OpenStorage {
        storage: inner.storage,
        shown,
        driver: "blkdebug".to_owned(),
    })
}

fn split(name: &str) -> Result<(String, Option<String>), Failure> {
    let rest = name.strip_prefix("blkdebug:").unwrap_or(name);
    match rest.split_once(':') {
        Some((config, image)) => Ok((config.to_owned(), Some(image.to_owned()))),
        None => Err(Failure::new("blkdebug requires both config file and image path")),
    }
}
