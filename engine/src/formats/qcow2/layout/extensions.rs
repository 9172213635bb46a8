//! Header extensions: between the header and the backing file name, each with a type, a length and data padded to 8 bytes.

use super::{be32, be64};
use crate::{Error, Result};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;
const FEATURE_ENTRY: usize = 48;
/// QEMU's bound on the number of bitmaps.
pub(in super::super) const MAX_BITMAPS: u32 = 65_535;
/// QEMU's bound on the bitmap directory, in bytes.
pub(in super::super) const MAX_BITMAP_DIRECTORY: u64 = 64 << 20;

/// The bitmaps extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct BitmapsExtension {
    /// Number of bitmaps, at least 1.
    pub count: u32,
    /// Bytes of the directory.
    pub directory_size: u64,
    /// Its offset.
    pub directory_offset: u64,
}

/// One extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Extension {
    /// Format of the backing file.
    BackingFormat(String),
    /// Names of feature bits, for messages of programs that do not know them. Kept as bytes.
    FeatureNames(Vec<u8>),
    /// Persistent dirty bitmaps.
    Bitmaps(BitmapsExtension),
    /// Place of the LUKS header.
    Crypto {
        /// Host offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Name of the external data file.
    DataFile(String),
    /// Anything else, kept as it is.
    Unknown {
        /// Its type.
        kind: u32,
        /// Its data without padding.
        data: Vec<u8>,
    },
}

/// All extensions in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in super::super) struct Extensions(pub Vec<Extension>);

impl Extensions {
    /// Reads the extensions in `area`: from the end of the header to the backing file name or to the end of the cluster.
    /// `open_ended` says that the area ends where the cluster does: then the end must be marked.
    ///
    /// # Errors
    /// `Corrupt` for extensions that do not fit or hold nonsense, and for two that say where something is. Of two backing formats the
    /// last one counts, as for QEMU.
    pub fn parse(area: &[u8], open_ended: bool) -> Result<Self> {
        let mut list: Vec<Extension> = Vec::new();
        let mut rest = area;
        while rest.len() >= 8 {
            let (kind, len) = (be32(rest, 0)?, be32(rest, 4)? as usize);
            if kind == END {
                return Ok(Self(list));
            }
            let body = rest.get(8..).unwrap_or_default();
            let data = body.get(..len).ok_or_else(|| {
                Error::corrupt(format!("header extension {kind:#x} of {len} bytes ends past its area"))
            })?;
            let extension = parse_one(kind, data)?;
            if extension.must_be_alone() && list.iter().any(|e| e.kind() == kind) {
                return Err(Error::corrupt(format!("header extension {kind:#x} comes twice")));
            }
            list.push(extension);
            rest = body.get(len.next_multiple_of(8)..).unwrap_or_default();
        }
        if open_ended && !list.is_empty() {
            return Err(Error::corrupt("the header extensions have no end mark"));
        }
        Ok(Self(list))
    }

    /// The extensions with their end mark as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for extension in &self.0 {
            let data = extension.data();
            bytes.extend_from_slice(&extension.kind().to_be_bytes());
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(&data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.extend_from_slice(&[0; 8]);
        bytes
    }

    /// The format of the backing file.
    pub fn backing_format(&self) -> Option<&str> {
        self.0.iter().rev().find_map(|e| match e {
            Extension::BackingFormat(name) => Some(name.as_str()),
            _ => None,
        })
    }
    /// The name of the external data file.
    pub fn data_file(&self) -> Option<&str> {
        self.0.iter().find_map(|e| match e {
            Extension::DataFile(name) => Some(name.as_str()),
            _ => None,
        })
    }
    /// Place and length of the LUKS header.
    pub fn crypto(&self) -> Option<(u64, u64)> {
        self.0.iter().find_map(|e| match e {
            Extension::Crypto { offset, len } => Some((*offset, *len)),
            _ => None,
        })
    }
    /// The bitmaps extension.
    pub fn bitmaps(&self) -> Option<BitmapsExtension> {
        self.0.iter().find_map(|e| match e {
            Extension::Bitmaps(bitmaps) => Some(*bitmaps),
            _ => None,
        })
    }
    /// The image's own name of a feature bit. `class` is 0 for incompatible, 1 for compatible, 2 for autoclear.
    pub fn feature_name(&self, class: u8, bit: u32) -> Option<String> {
        let table = self.0.iter().rev().find_map(|e| match e {
            Extension::FeatureNames(bytes) => Some(bytes.as_slice()),
            _ => None,
        })?;
        let entry = table
            .chunks(FEATURE_ENTRY)
            .find(|e| e.first() == Some(&class) && e.get(1).is_some_and(|b| u32::from(*b) == bit))?;
        let name = entry.get(2..)?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        Some(String::from_utf8_lossy(name.get(..end)?).into_owned())
    }
    /// Puts `new` in the place of the extensions of its kind, or where QEMU would write it; `None` removes the kind of `like`.
    pub fn replace(&mut self, kind: ExtensionKind, new: Option<Extension>) {
        let found = self.0.iter().position(|e| e.kind() == kind.0);
        let mut nth = 0;
        self.0.retain(|e| {
            nth += usize::from(e.kind() == kind.0);
            e.kind() != kind.0 || nth == 1
        });
        match (found, new) {
            (Some(i), Some(new)) => self.0[i] = new,
            (Some(i), None) => {
                self.0.remove(i);
            }
            (None, Some(new)) => {
                let i = self
                    .0
                    .iter()
                    .position(|e| e.rank() > new.rank())
                    .unwrap_or(self.0.len());
                self.0.insert(i, new);
            }
            (None, None) => {}
        }
    }
}

/// Which extension [`Extensions::replace`] means.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct ExtensionKind(u32);

impl ExtensionKind {
    pub const BACKING_FORMAT: Self = Self(BACKING_FORMAT);
    pub const FEATURE_NAMES: Self = Self(FEATURE_NAMES);
    pub const BITMAPS: Self = Self(BITMAPS);
    pub const CRYPTO: Self = Self(CRYPTO);
    pub const DATA_FILE: Self = Self(DATA_FILE);
}

fn parse_one(kind: u32, data: &[u8]) -> Result<Extension> {
    Ok(match kind {
        BACKING_FORMAT => Extension::BackingFormat(text("backing format", data)?),
        DATA_FILE => Extension::DataFile(text("data file name", data)?),
        FEATURE_NAMES => Extension::FeatureNames(data.to_vec()),
        CRYPTO if data.len() == 16 => Extension::Crypto {
            offset: be64(data, 0)?,
            len: be64(data, 8)?,
        },
        BITMAPS if data.len() == 24 => Extension::Bitmaps(BitmapsExtension {
            count: be32(data, 0)?,
            directory_size: be64(data, 8)?,
            directory_offset: be64(data, 16)?,
        }),
        CRYPTO | BITMAPS => {
            return Err(Error::corrupt(format!(
                "header extension {kind:#x} cannot have {} bytes",
                data.len()
            )));
        }
        _ => Extension::Unknown {
            kind,
            data: data.to_vec(),
        },
    })
}

/// A name from the header. Trailing NULs are padding of some writers; others would hide a part of the name.
pub(in super::super) fn text(what: &str, data: &[u8]) -> Result<String> {
    let end = data.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
    let name = data.get(..end).unwrap_or_default();
    match std::str::from_utf8(name) {
        Ok(name) if !name.contains('\0') => Ok(name.to_owned()),
        Ok(_) => Err(Error::corrupt(format!("the {what} has a NUL inside"))),
        Err(_) => Err(Error::unsupported(format!(
            "the {what} \"{}\" is not UTF-8",
            name.escape_ascii()
        ))),
    }
}

impl Extension {
    /// Of two of these nobody could tell which one is meant.
    fn must_be_alone(&self) -> bool {
        matches!(self, Self::Bitmaps(_) | Self::Crypto { .. } | Self::DataFile(_))
    }
    fn kind(&self) -> u32 {
        match self {
            Self::BackingFormat(_) => BACKING_FORMAT,
            Self::FeatureNames(_) => FEATURE_NAMES,
            Self::Bitmaps(_) => BITMAPS,
            Self::Crypto { .. } => CRYPTO,
            Self::DataFile(_) => DATA_FILE,
            Self::Unknown { kind, .. } => *kind,
        }
    }
    /// The order in which QEMU writes them.
    fn rank(&self) -> u32 {
        match self {
            Self::BackingFormat(_) => 0,
            Self::DataFile(_) => 1,
            Self::Crypto { .. } => 2,
            Self::FeatureNames(_) => 3,
            Self::Bitmaps(_) => 4,
            Self::Unknown { .. } => 5,
        }
    }
    fn data(&self) -> Vec<u8> {
        match self {
            Self::BackingFormat(name) | Self::DataFile(name) => name.as_bytes().to_vec(),
            Self::FeatureNames(data) | Self::Unknown { data, .. } => data.clone(),
            Self::Crypto { offset, len } => [offset.to_be_bytes(), len.to_be_bytes()].concat(),
            Self::Bitmaps(b) => {
                let mut data = u64::from(b.count).rotate_left(32).to_be_bytes().to_vec();
                data.extend_from_slice(&b.directory_size.to_be_bytes());
                data.extend_from_slice(&b.directory_offset.to_be_bytes());
                data
            }
        }
    }
}

/// The feature name table as QEMU 10 writes it.
pub(in super::super) fn feature_names() -> Extension {
    let names: [(u8, u8, &str); 8] = [
        (0, 0, "dirty bit"),
        (0, 1, "corrupt bit"),
        (0, 2, "external data file"),
        (0, 3, "compression type"),
        (0, 4, "extended L2 entries"),
        (1, 0, "lazy refcounts"),
        (2, 0, "bitmaps"),
        (2, 1, "raw external data"),
    ];
    let mut table = Vec::with_capacity(names.len() * FEATURE_ENTRY);
    for (class, bit, name) in names {
        table.extend_from_slice(&[class, bit]);
        table.extend_from_slice(name.as_bytes());
        table.resize(table.len().next_multiple_of(FEATURE_ENTRY), 0);
    }
    Extension::FeatureNames(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_round_trip_with_unknown_ones_in_place() {
        let list = Extensions(vec![
            Extension::BackingFormat("raw".into()),
            Extension::Unknown {
                kind: 0x1234,
                data: vec![1, 2, 3],
            },
            feature_names(),
            Extension::Bitmaps(BitmapsExtension {
                count: 3,
                directory_size: 96,
                directory_offset: 0x50000,
            }),
        ]);
        assert_eq!(Extensions::parse(&list.encode(), true).unwrap(), list);
        assert_eq!(list.feature_name(0, 4).as_deref(), Some("extended L2 entries"));
    }

    #[test]
    fn lengths_past_the_area_and_repetitions_are_corrupt() {
        let mut one = Extensions(vec![Extension::DataFile("raw".into())]).encode();
        one.truncate(16);
        assert!(Extensions::parse(&[&one[..], &one[..], &[0; 8]].concat(), true).is_err());
        assert!(Extensions::parse(&one, true).is_err());
        assert!(Extensions::parse(&one, false).is_ok());
        for len in [0x7fff_ffff_u32, 0xffff_fff8, 9] {
            let bad = [&[0, 0, 0x12, 0x34][..], &len.to_be_bytes(), &[0; 8]].concat();
            assert!(Extensions::parse(&bad, true).is_err(), "{len:#x}");
        }
    }
}
