//! The parent locator: which disk is below, and where it may be found.

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{PARENT_TYPE, RawLocator, RawLocatorEntry};
use crate::formats::windows::{names, to_windows};
use crate::{Error, Result};

const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
const RELATIVE: &str = "relative_path";
const ABSOLUTE: &str = "absolute_win32_path";
const VOLUME: &str = "volume_path";
/// Keys of the largest locator.
const MOST: u16 = 64;

/// What a differencing disk says about the disk below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Ids, one of which the disk below must have as its data-write id.
    pub ids: Vec<uuid::Uuid>,
    /// Its paths by their keys as stored, the best first.
    paths: Vec<(&'static str, String)>,
}

impl Parent {
    /// A disk by its name here.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that would not come back as it was.
    pub fn named(ids: Vec<uuid::Uuid>, name: &str) -> Result<Self> {
        let (path, relative) = to_windows(name)?;
        let key = if relative { RELATIVE } else { ABSOLUTE };
        Ok(Self {
            ids,
            paths: vec![(key, path)],
        })
    }

    /// The names that the disk may be found by, the best first.
    pub fn names(&self) -> Vec<String> {
        let paths = self.paths.iter().map(|(key, path)| (path.as_str(), *key == RELATIVE));
        names(&paths.collect::<Vec<_>>())
    }

    /// Reads the item.
    ///
    /// # Errors
    /// `Corrupt` where it contradicts itself, lacks a key, or is none of a VHDX.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let cut = || Error::corrupt("the parent locator is cut short");
        let (head, rest) = RawLocator::read_from_prefix(bytes).map_err(|_| cut())?;
        let (kind, count) = (uuid::Uuid::from_bytes_le(head.kind), head.count.get());
        if kind != PARENT_TYPE || count > MOST {
            return Err(Error::corrupt(format!(
                "unknown parent locator {kind} with {count} keys"
            )));
        }
        let mut pairs = Vec::new();
        for at in 0..usize::from(count) {
            let size = size_of::<RawLocatorEntry>();
            let entry = rest.get(at * size..(at + 1) * size).ok_or_else(cut)?;
            let entry = RawLocatorEntry::read_from_bytes(entry).map_err(|_| cut())?;
            let text = |offset: u32, len: u16| {
                let start = usize::try_from(offset).ok()?;
                bytes.get(start..start.checked_add(usize::from(len))?).map(utf16)
            };
            let key = text(entry.key_offset.get(), entry.key_length.get()).ok_or_else(cut)?;
            let value = text(entry.value_offset.get(), entry.value_length.get()).ok_or_else(cut)?;
            pairs.push((key, value));
        }
        let get = |name: &str| {
            let found = pairs.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
        };
        let ids: Vec<_> = [LINKAGE, LINKAGE2]
            .iter()
            .filter_map(|key| get(key))
            .map(id)
            .collect::<Result<_>>()?;
        if ids.is_empty() {
            return Err(Error::corrupt("the parent locator has no parent_linkage"));
        }
        let paths: Vec<_> = [RELATIVE, ABSOLUTE, VOLUME]
            .into_iter()
            .filter_map(|key| Some((key, get(key)?.to_owned())))
            .collect();
        if paths.is_empty() {
            return Err(Error::corrupt("the parent locator has no path"));
        }
        Ok(Self {
            ids: ids.into_iter().filter(|id| !id.is_nil()).collect(),
            paths,
        })
    }

    /// The item for a disk below.
    ///
    /// # Errors
    /// `InvalidArgument` for a path that is too long.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let linkage = self.ids.first().copied().unwrap_or_default();
        let mut pairs = vec![(LINKAGE, linkage.braced().to_string())];
        pairs.extend(self.paths.iter().cloned());
        let narrow = |n: usize| u16::try_from(n).map_err(|_| Error::invalid("the name of the disk below is too long"));
        let head = RawLocator {
            kind: PARENT_TYPE.to_bytes_le(),
            reserved: 0.into(),
            count: narrow(pairs.len())?.into(),
        };
        let mut bytes = head.as_bytes().to_vec();
        let mut at = bytes.len() + pairs.len() * size_of::<RawLocatorEntry>();
        let mut texts = Vec::new();
        for (key, value) in &pairs {
            let (key, value) = (encoded(key), encoded(value));
            let place =
                |n: usize| u32::try_from(n).map_err(|_| Error::invalid("the name of the disk below is too long"));
            let entry = RawLocatorEntry {
                key_offset: place(at)?.into(),
                value_offset: place(at + key.len())?.into(),
                key_length: narrow(key.len())?.into(),
                value_length: narrow(value.len())?.into(),
            };
            at += key.len() + value.len();
            bytes.extend_from_slice(entry.as_bytes());
            texts.extend(key);
            texts.extend(value);
        }
        bytes.extend(texts);
        Ok(bytes)
    }
}

fn id(text: &str) -> Result<uuid::Uuid> {
    uuid::Uuid::parse_str(text).map_err(|_| {
        Error::corrupt(format!(
            "expected an id in the parent locator, found \"{}\"",
            text.escape_debug()
        ))
    })
}

fn utf16(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|b| u16::from_le_bytes(*b))
        .collect();
    String::from_utf16_lossy(&units)
}

fn encoded(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locator_comes_back() {
        for name in ["base.vhdx", "../up/größe.vhdx", "/abs/base.vhdx"] {
            let parent = Parent::named(vec![uuid::Uuid::from_u128(7)], name).unwrap();
            assert_eq!(Parent::read(&parent.encode().unwrap()).unwrap(), parent);
            assert_eq!(parent.names()[0], name);
        }
    }

    #[test]
    fn a_locator_cut_anywhere_is_corrupt() {
        let parent = Parent::named(vec![uuid::Uuid::from_u128(7)], "base.vhdx").unwrap();
        let bytes = parent.encode().unwrap();
        for end in 0..bytes.len() {
            assert!(Parent::read(&bytes[..end]).is_err(), "{end}");
        }
    }
}
