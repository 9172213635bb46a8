//! The names of the disk below a differencing disk.

use zerocopy::big_endian::U16;

use super::layout::{RawHeader, RawLocator};
use crate::formats::windows::{names, to_windows};
use crate::storage::read_vec;
use crate::{Error, Result, Storage};

/// Bytes of the longest name: 32,767 characters is what Windows allows.
const LONGEST: u32 = 65534;
/// Relative path, UTF-16LE.
pub const RELATIVE: [u8; 4] = *b"W2ru";
/// Absolute path, UTF-16LE.
pub const ABSOLUTE: [u8; 4] = *b"W2ku";

/// The names that the disk below may be found by, the best first.
///
/// # Errors
/// `Corrupt` where there is none, or the best lies outside the file.
pub fn parent_names(storage: &dyn Storage, header: &RawHeader) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for platform in [RELATIVE, ABSOLUTE] {
        for locator in header.locators.iter().filter(|l| l.platform == platform) {
            match text_of(storage, locator) {
                Ok(text) => paths.push((text, platform == RELATIVE)),
                Err(error) if paths.iter().all(|(text, _)| text.is_empty()) => return Err(error),
                Err(_) => {}
            }
        }
    }
    let units: Vec<u16> = header.parent_name.iter().map(|u| u.get()).collect();
    paths.push((trimmed(&units), true));
    let paths: Vec<(&str, bool)> = paths
        .iter()
        .map(|(text, relative)| (text.as_str(), *relative))
        .collect();
    let found = names(&paths);
    if found.is_empty() {
        return Err(Error::corrupt("the differencing disk does not name the disk below"));
    }
    Ok(found)
}

fn text_of(storage: &dyn Storage, locator: &RawLocator) -> Result<String> {
    let (offset, len) = (locator.offset.get(), locator.length.get());
    if len > LONGEST || len % 2 != 0 {
        return Err(Error::corrupt(format!(
            "expected a parent name of at most {LONGEST} bytes in 16-bit units, found {len} bytes"
        )));
    }
    let bytes = read_vec(storage, offset, len as usize)?;
    let units: Vec<u16> = bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|b| u16::from_le_bytes(*b))
        .collect();
    Ok(trimmed(&units))
}

fn trimmed(units: &[u16]) -> String {
    let end = units.iter().position(|u| *u == 0).unwrap_or(units.len());
    String::from_utf16_lossy(units.get(..end).unwrap_or_default())
}

/// End of the last name in the file, so that space behind it can be given back.
pub fn end(header: &RawHeader) -> u64 {
    let used = header.locators.iter().filter(|l| l.platform != [0; 4]);
    used.map(|l| l.offset.get().saturating_add(u64::from(l.length.get())))
        .max()
        .unwrap_or(0)
}

/// A name as it is stored: platform code and UTF-16LE text.
///
/// # Errors
/// `InvalidArgument` for a name that would not come back as it was.
pub fn to_stored(name: &str) -> Result<([u8; 4], Vec<u8>)> {
    let (text, relative) = to_windows(name)?;
    let stored: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    if stored.len() > LONGEST as usize {
        return Err(Error::invalid("the name of the disk below is too long"));
    }
    Ok((if relative { RELATIVE } else { ABSOLUTE }, stored))
}

/// A name as it stands in the header itself: as much of it as there is room for.
pub fn header_name(name: &str) -> [U16; 256] {
    let mut units = [U16::ZERO; 256];
    for (unit, value) in units.iter_mut().take(255).zip(name.encode_utf16()) {
        *unit = value.into();
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::windows::from_windows;

    #[test]
    fn stored_names_come_back() {
        for name in ["a.vhd", "../b/c.vhd", "/abs/d.vhd", "grün 😀.vhd"] {
            let (platform, bytes) = to_stored(name).unwrap();
            let units: Vec<u16> = bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| u16::from_le_bytes(*b))
                .collect();
            assert_eq!(from_windows(&trimmed(&units), platform == RELATIVE), name);
        }
        for name in ["", "a\\b.vhd", "a\0b"] {
            assert!(to_stored(name).is_err(), "{name:?}");
        }
    }
}
