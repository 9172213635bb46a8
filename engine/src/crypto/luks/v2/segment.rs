//! Where a LUKS2 header says the data is (specification, section 3.4), and what it demands of its readers (3.6).

use super::json::Object;
use super::metadata::{Digest, Slot};
use crate::crypto::CipherSpec;
use crate::{Error, Result};

/// The encrypted data.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) offset: u64,
    /// `None`: to the end of the file.
    pub(super) len: Option<u64>,
    /// Added to the number of the 512-byte sector for its IV.
    pub(super) iv_tweak: u64,
    pub(super) spec: CipherSpec,
    pub(super) sector_size: u32,
}

/// The one segment of data. What would need more than decrypting is no damage: it is refused when the data is wanted.
pub(super) fn segment(
    root: &Object<'_>,
    slots: &[Slot],
    digests: &[Digest],
    area_end: u64,
) -> Result<Result<Segment, String>> {
    if let Some(reason) = requirement(root)? {
        return Ok(Err(reason));
    }
    let segments = root.object("segments")?.numbered().collect::<Result<Vec<_>>>()?;
    let [(number, value)] = segments.as_slice() else {
        return Ok(Err(format!(
            "the LUKS2 header has {} segments where one is supported",
            segments.len()
        )));
    };
    let object = Object::of(value, "segment")?;
    if object.text("type")? != "crypt" {
        return Ok(Err(format!(
            "a LUKS2 segment of type '{}' is not supported",
            object.text("type")?.escape_debug()
        )));
    }
    if object.get("integrity").is_some() {
        return Ok(Err("LUKS2 with integrity protection is not supported".to_owned()));
    }
    let len = match object.text("size")? {
        "dynamic" => None,
        _ => Some(object.u64("size")?),
    };
    let sector_size = object.u32("sector_size")?;
    let offset = object.u64("offset")?;
    let aligned = offset.is_multiple_of(512)
        && len.is_none_or(|len| len > 0 && len.is_multiple_of(u64::from(sector_size.max(1))));
    if !matches!(sector_size, 512 | 1024 | 2048 | 4096) || !aligned {
        return Err(Error::corrupt(format!(
            "the LUKS2 segment at {offset:#x} is not of whole sectors of {sector_size} bytes"
        )));
    }
    if offset != 0 && offset < area_end {
        return Err(Error::corrupt(format!(
            "the LUKS2 segment begins at {offset:#x}, in the header, which ends at {area_end:#x}"
        )));
    }
    let digest = digests.iter().find(|digest| digest.segments.contains(number));
    let digest = digest.ok_or_else(|| Error::corrupt("the LUKS2 segment belongs to no digest"))?;
    let of_segment = |slot: &&Slot| digest.slots.contains(&slot.number);
    let spec = spec(
        object.text("encryption")?,
        slots
            .iter()
            .filter(of_segment)
            .find_map(|slot| slot.key.as_ref().ok())
            .map(|key| key.len),
    )?;
    Ok(Ok(Segment {
        number: *number,
        offset,
        len,
        iv_tweak: object.u64("iv_tweak")?,
        spec,
        sector_size,
    }))
}

/// The segment's cipher. Its key length stands in the key slots; without any the longest that fits is as good as another.
fn spec(text: &str, key_len: Option<usize>) -> Result<CipherSpec> {
    match key_len {
        Some(len) => CipherSpec::parse_joined(text, len),
        None => [64, 32, 16]
            .iter()
            .map(|len| CipherSpec::parse_joined(text, *len))
            .reduce(Result::or)
            .unwrap_or_else(|| Err(Error::unsupported("a LUKS2 segment without a cipher"))),
    }
}

/// Why a header that demands more of its reader is refused.
fn requirement(root: &Object<'_>) -> Result<Option<String>> {
    let config = root.object("config")?;
    if config.get("requirements").is_none() {
        return Ok(None);
    }
    let requirements = config.object("requirements")?;
    if requirements.get("mandatory").is_none() {
        return Ok(None);
    }
    let mandatory = requirements.texts("mandatory")?;
    Ok(mandatory.first().map(|first| {
        if first.contains("reencrypt") {
            return "the LUKS2 volume is being re-encrypted: finish that with cryptsetup first".to_owned();
        }
        let name = first.escape_debug();
        format!("the LUKS2 header requires '{name}', which is not supported")
    }))
}
