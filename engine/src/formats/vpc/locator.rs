//! The names of the disk below a differencing disk.
//!
//! The format knows Windows paths. A relative one becomes a relative name with slashes; of an absolute one with a drive letter only the last
//! part is kept, because that drive is not here; anything else (a POSIX path by another program, a network share) stays as it is. Whether the
//! name may be opened is for the gate to say.

use zerocopy::big_endian::U16;

use super::layout::{RawHeader, RawLocator};
use crate::storage::read_vec;
use crate::{Error, Result, Storage};

/// Bytes of the longest name: 32,767 characters is what Windows allows.
const LONGEST: u32 = 65534;
/// Relative path, UTF-16LE.
pub const RELATIVE: [u8; 4] = *b"W2ru";
/// Absolute path, UTF-16LE.
pub const ABSOLUTE: [u8; 4] = *b"W2ku";

/// The name of the disk below.
///
/// # Errors
/// `Corrupt` where there is none, or it lies outside the file.
pub fn parent_name(storage: &dyn Storage, header: &RawHeader) -> Result<String> {
    for platform in [RELATIVE, ABSOLUTE] {
        for locator in header.locators.iter().filter(|l| l.platform == platform) {
            let text = text_of(storage, locator)?;
            if !text.is_empty() {
                return Ok(from_windows(&text, platform == RELATIVE));
            }
        }
    }
    let units: Vec<u16> = header.parent_name.iter().map(|u| u.get()).collect();
    let text = trimmed(&units);
    if text.is_empty() {
        return Err(Error::corrupt("the differencing disk does not name the disk below"));
    }
    Ok(from_windows(&text, true))
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

/// A path as Windows writes it, as a name here.
fn from_windows(text: &str, relative: bool) -> String {
    let bytes = text.as_bytes();
    let drive = bytes.get(1) == Some(&b':') && bytes.first().is_some_and(u8::is_ascii_alphabetic);
    if drive {
        return text.rsplit(['\\', '/', ':']).next().unwrap_or(text).to_owned();
    }
    if !relative || text.starts_with('/') || text.starts_with('\\') {
        return text.to_owned();
    }
    let name = text.replace('\\', "/");
    name.strip_prefix("./").map_or(name.clone(), str::to_owned)
}

/// A name as it is stored: platform code and UTF-16LE text.
///
/// # Errors
/// `InvalidArgument` for a name that would not come back as it was.
pub fn to_stored(name: &str) -> Result<([u8; 4], Vec<u8>)> {
    let (platform, text) = if name.starts_with('/') {
        (ABSOLUTE, name.to_owned())
    } else {
        (RELATIVE, format!(".\\{}", name.replace('/', "\\")))
    };
    let stored: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let back = from_windows(&text, platform == RELATIVE);
    if name.is_empty() || name.contains('\0') || back != name || stored.len() > LONGEST as usize {
        return Err(Error::invalid(format!(
            "a VHD cannot name \"{}\" as the disk below",
            name.escape_debug()
        )));
    }
    Ok((platform, stored))
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

    #[test]
    fn windows_paths_become_names_here() {
        for (text, relative, name) in [
            (".\\fat-parent.vhd", true, "fat-parent.vhd"),
            ("..\\up\\p.vhd", true, "../up/p.vhd"),
            ("C:\\Projects\\test data\\fat-parent.vhd", false, "fat-parent.vhd"),
            ("/images/base.vhd", false, "/images/base.vhd"),
            ("\\\\host\\share\\p.vhd", false, "\\\\host\\share\\p.vhd"),
            ("image.vhd", false, "image.vhd"),
        ] {
            assert_eq!(from_windows(text, relative), name);
        }
    }

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
