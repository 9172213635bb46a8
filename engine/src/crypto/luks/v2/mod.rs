//! LUKS2 (LUKS2 On-Disk Format Specification 1.1.1).

mod create;
mod edit;
mod header;
mod json;
mod layout;
mod metadata;
mod segment;
mod slots;

use super::{LuksInfo, LuksSlot, VolumeLayout};
use crate::{Error, Result};

pub(crate) use create::{DATA_OFFSET, create};
pub(crate) use header::{Header, has_second, lost_its_magic};
pub(crate) use metadata::SLOTS;

impl Header {
    /// Where the data lies.
    ///
    /// # Errors
    /// `Unsupported` for data that is not plainly encrypted.
    pub(crate) fn volume(&self) -> Result<VolumeLayout> {
        let segment = self
            .meta
            .segment
            .as_ref()
            .map_err(|reason| Error::unsupported(reason.clone()))?;
        let iv_offset = segment.iv_tweak.checked_mul(512);
        Ok(VolumeLayout {
            spec: segment.spec,
            sector_size: segment.sector_size,
            payload_offset: segment.offset,
            payload_len: segment.len,
            iv_offset: iv_offset.ok_or_else(|| Error::corrupt("the iv_tweak of a LUKS2 segment is too large"))?,
        })
    }

    /// Facts of the header.
    pub(crate) fn info(&self) -> LuksInfo {
        let digest = self.digest().ok();
        let slots = self.meta.slots.iter().map(|slot| {
            let (kdf, iterations, memory_kib) = match slot.key.as_ref().map(|key| key.kdf) {
                Ok(metadata::Kdf::Pbkdf2 { iterations, .. }) => ("pbkdf2", iterations, 0),
                Ok(metadata::Kdf::Argon2 { variant, cost }) => {
                    (edit::variant_name(variant), cost.time, cost.memory_kib)
                }
                Err(_) => ("unknown", 0, 0),
            };
            let holds_key = digest.is_some() && slot.key.is_ok() && self.holders().contains(&slot.number);
            let ignored = slot.key.as_ref().is_ok_and(|key| key.priority == 0);
            LuksSlot {
                number: slot.number,
                active: true,
                holds_key,
                opens_data: holds_key && !ignored,
                kdf,
                iterations,
                memory_kib,
                key_offset: slot.offset,
                stripes: metadata::STRIPES,
            }
        });
        let mut slots: Vec<_> = slots.collect();
        slots.sort_by_key(|slot| slot.number);
        LuksInfo {
            version: 2,
            uuid: self.uuid.clone(),
            hash: digest.map_or(crate::crypto::HashAlgorithm::Sha256, |digest| digest.hash),
            digest_iterations: digest.map_or(0, |digest| digest.iterations),
            slots,
        }
    }
}
