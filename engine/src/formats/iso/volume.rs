//! Volume descriptors. Source: ECMA-119 (ISO 9660) section 8, ECMA-167 (UDF) parts 2 and 3, El Torito 1.0.

use serde_json::{Map, Value};

use crate::storage::{Storage, read_padded};
use crate::{Error, Result};

/// Bytes of a logical sector.
const SECTOR: u64 = 2048;
/// Where the volume descriptors start.
pub(super) const FIRST: u64 = 16 * SECTOR;
/// Volume descriptors looked at.
const MAX_DESCRIPTORS: u64 = 64;
/// Where UDF's anchor is.
const ANCHOR: u64 = 256 * SECTOR;

/// Whether bytes are a descriptor of ISO 9660 or of the structure that announces UDF.
pub(super) fn is_descriptor(bytes: &[u8]) -> bool {
    matches!(bytes.get(1..6), Some(b"CD001" | b"BEA01" | b"NSR02" | b"NSR03"))
}

/// What the descriptors say, by name.
///
/// # Errors
/// `NotThisFormat` where there is none.
pub(super) fn read(file: &dyn Storage) -> Result<Map<String, Value>> {
    let mut facts = Map::new();
    let mut any = false;
    for number in 0..MAX_DESCRIPTORS {
        let sector = sector(file, FIRST + number * SECTOR)?;
        match sector.get(1..6) {
            Some(b"CD001") => iso9660(&sector, &mut facts),
            Some(b"NSR02" | b"NSR03") => {
                facts.insert("udf".to_owned(), true.into());
            }
            Some(b"BEA01" | b"TEA01" | b"BOOT2") => {}
            _ => break,
        }
        any = true;
    }
    if !any {
        return Err(Error::not_this_format("no volume descriptor at sector 16"));
    }
    if facts.contains_key("udf") {
        udf(file, &mut facts)?;
    }
    Ok(facts)
}

fn sector(file: &dyn Storage, at: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(SECTOR).unwrap_or(0)];
    read_padded(file, at, &mut bytes)?;
    Ok(bytes)
}

fn iso9660(descriptor: &[u8], facts: &mut Map<String, Value>) {
    match descriptor.first() {
        Some(0)
            if descriptor
                .get(7..30)
                .is_some_and(|id| id.starts_with(b"EL TORITO SPECIFICATION")) =>
        {
            facts.insert("el-torito".to_owned(), true.into());
        }
        Some(1) if !facts.contains_key("iso9660") => primary(descriptor, facts),
        // Supplementary descriptors with one of the escape sequences for UCS-2 are Joliet's.
        Some(2) if matches!(descriptor.get(88..91), Some(b"%/@" | b"%/C" | b"%/E")) => {
            facts.insert("joliet".to_owned(), true.into());
        }
        _ => {}
    }
}

fn primary(descriptor: &[u8], facts: &mut Map<String, Value>) {
    facts.insert("iso9660".to_owned(), true.into());
    let texts = [
        ("system-id", 8..40),
        ("volume-id", 40..72),
        ("volume-set-id", 190..318),
        ("publisher", 318..446),
        ("preparer", 446..574),
        ("application", 574..702),
        ("creation-date", 813..829),
        ("modification-date", 830..846),
    ];
    for (name, range) in texts {
        let bytes = descriptor.get(range).unwrap_or_default();
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_matches(['\0', ' ']);
        if !text.is_empty() && !text.bytes().all(|b| b == b'0') {
            facts.insert(name.to_owned(), text.into());
        }
    }
    let number = |at: usize| {
        descriptor
            .get(at..)
            .and_then(|b| b.first_chunk())
            .map(|b| u32::from_le_bytes(*b))
    };
    let block = descriptor
        .get(128..130)
        .and_then(|b| b.first_chunk())
        .map(|b| u16::from_le_bytes(*b));
    if let (Some(blocks), Some(block)) = (number(80), block) {
        facts.insert("block-size".to_owned(), block.into());
        facts.insert("volume-size".to_owned(), (u64::from(blocks) * u64::from(block)).into());
    }
}

/// The logical volume's name and UDF's revision: anchor, volume descriptor sequence, logical volume descriptor.
fn udf(file: &dyn Storage, facts: &mut Map<String, Value>) -> Result<()> {
    let anchor = sector(file, ANCHOR)?;
    let number = |bytes: &[u8], at: usize| {
        bytes
            .get(at..)
            .and_then(|b| b.first_chunk())
            .map(|b| u32::from_le_bytes(*b))
    };
    let tag = |bytes: &[u8]| bytes.first_chunk().map(|b| u16::from_le_bytes(*b));
    let (Some(2), Some(len), Some(first)) = (tag(&anchor), number(&anchor, 16), number(&anchor, 20)) else {
        return Ok(());
    };
    for n in 0..(u64::from(len) / SECTOR).min(MAX_DESCRIPTORS) {
        let descriptor = sector(file, (u64::from(first) + n) * SECTOR)?;
        match tag(&descriptor) {
            Some(6) => {
                if let Some(name) = descriptor.get(84..212).and_then(dstring) {
                    facts.insert("udf-volume-id".to_owned(), name.into());
                }
                if let Some(revision) = descriptor.get(240..242).and_then(|b| b.first_chunk()) {
                    let revision = u16::from_le_bytes(*revision);
                    facts.insert(
                        "udf-revision".to_owned(),
                        format!("{:x}.{:02x}", revision >> 8, revision & 0xff).into(),
                    );
                }
                return Ok(());
            }
            Some(8) | None => return Ok(()),
            Some(_) => {}
        }
    }
    Ok(())
}

/// A fixed field of characters of 8 or 16 bits; its last byte is the length used.
fn dstring(field: &[u8]) -> Option<String> {
    let (len, field) = field.split_last()?;
    let used = field.get(..usize::from(*len))?;
    let (width, text) = used.split_first()?;
    match width {
        8 => Some(text.iter().map(|b| char::from(*b)).collect()),
        16 => {
            let units = text
                .chunks_exact(2)
                .filter_map(|b| b.first_chunk())
                .map(|b| u16::from_be_bytes(*b));
            Some(
                char::decode_utf16(units)
                    .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                    .collect(),
            )
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_says_its_width_and_length() {
        assert_eq!(dstring(&[8, b'a', b'b', 0, 3]).as_deref(), Some("ab"));
        assert_eq!(dstring(&[16, 0, b'a', 0, 3]).as_deref(), Some("a"));
        assert_eq!(dstring(&[8, b'a', 200]), None);
        assert_eq!(dstring(&[]), None);
    }
}
