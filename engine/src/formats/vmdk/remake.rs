//! Making an image anew: with which options, and under the identity that the layers above know.

use std::sync::atomic::Ordering;

use super::OPTIONS;
use super::image::VmdkImage;
use super::meta::cid_of;
use crate::options::{OptionKind, Options};
use crate::{Error, Image, Result};

/// The subformat whose grains are compressed, whatever the descriptor calls it.
const COMPRESSED: &str = "streamOptimized";

impl VmdkImage {
    /// Options that make another one like this.
    pub fn options(&self) -> Options {
        let mut options = Options::new();
        if let Some((descriptor, _)) = self.descriptor().as_ref() {
            let said = [
                ("subformat", Some(descriptor.create_type.as_str())),
                ("adapter_type", descriptor.word("ddb.adapterType")),
                ("hwversion", descriptor.word("ddb.virtualHWVersion")),
                ("toolsversion", descriptor.word("ddb.toolsVersion")),
            ];
            for (name, value) in said {
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    options.set(name, as_offered(name, value));
                }
            }
        }
        if self.is_deflated() {
            options.set("subformat", COMPRESSED);
        }
        if self.sparse_extents().any(|extent| extent.zero_grains) {
            options.set("zeroed_grain", "on");
        }
        options
    }

    /// Other subformats take compressed writes as plain ones.
    pub fn require_deflated(&self) -> Result<()> {
        match self.is_deflated() {
            true => Ok(()),
            false => Err(Error::unsupported(
                "only streamOptimized VMDK images hold compressed grains",
            )),
        }
    }

    /// Takes the CID of the image that this one will replace. What is written into it from now on is what that one shows.
    pub fn take_cid(&self, old: &dyn Image) -> Result<()> {
        let Ok(cid) = cid_of(old) else { return Ok(()) };
        let mut guard = self.descriptor();
        if let Some((descriptor, place)) = guard.as_mut() {
            descriptor.set_cid(cid);
            self.store_descriptor(descriptor, *place)?;
            self.main()?.flush()?;
        }
        self.cid_changed.store(true, Ordering::Release);
        Ok(())
    }
}

/// A word in the spelling of the option that offers it: descriptors of others differ in capitals.
fn as_offered<'a>(name: &str, value: &'a str) -> &'a str {
    let spec = OPTIONS.iter().find(|spec| spec.name == name);
    match spec.map(|spec| spec.kind) {
        Some(OptionKind::Choice(words)) => {
            let same = words.iter().find(|word| word.eq_ignore_ascii_case(value));
            same.copied().unwrap_or(value)
        }
        _ => value,
    }
}
