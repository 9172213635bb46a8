//! Section 2.2.1 "File Type Identifier" and 2.2.2 "Headers".

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{MIB, PAGE, is_sound, seal};
use crate::{Error, Result};

/// What a file begins with, followed by the creator's name in UTF-16.
const FILE_TYPE: &[u8; 8] = b"vhdxfile";

/// The first bytes of a new file.
pub fn file_type(creator: &str) -> Vec<u8> {
    let mut bytes = FILE_TYPE.to_vec();
    bytes.extend(creator.encode_utf16().take(255).flat_map(u16::to_le_bytes));
    bytes.resize(8 + 512, 0);
    bytes
}

/// One of the two headers, 4 KiB of which the rest is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    /// `head`.
    pub signature: [u8; 4],
    /// CRC-32C of the 4 KiB.
    pub checksum: U32,
    /// The sound header with the larger number counts.
    pub sequence: U64,
    /// Changes when the file is opened for writing.
    pub file_write_guid: [u8; 16],
    /// Changes when the guest's data change; overlays know their base by it.
    pub data_write_guid: [u8; 16],
    /// Marks the entries of the log that count; zero: none do.
    pub log_guid: [u8; 16],
    /// Must be 0.
    pub log_version: U16,
    /// Must be 1.
    pub version: U16,
    /// Bytes of the log, whole MiB.
    pub log_length: U32,
    /// Its place, whole MiB.
    pub log_offset: U64,
}
const _: () = assert!(size_of::<RawHeader>() == 80);

impl RawHeader {
    /// As it is stored, with the right sum.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.as_bytes().to_vec();
        bytes.resize(PAGE as usize, 0);
        seal(&mut bytes);
        bytes
    }
}

/// A header whose signature, sum, versions and log fields were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// As stored.
    pub raw: RawHeader,
    /// Whether the log holds something to be done again.
    pub log_in_use: bool,
    /// Place of the log.
    pub log_offset: u64,
    /// Its bytes, at least 1 MiB.
    pub log_length: u64,
}

impl Header {
    /// Whether 4 KiB look like a header at all: signature and sum.
    pub fn is_sound(page: &[u8]) -> bool {
        page.starts_with(b"head") && is_sound(page)
    }
    /// Checks the 4 KiB of a sound header.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported` that names the field.
    pub fn checked(page: &[u8]) -> Result<Self> {
        let (raw, _) = RawHeader::read_from_prefix(page).map_err(|_| Error::corrupt("a header has 4096 bytes"))?;
        if raw.version.get() != 1 || raw.log_version.get() != 0 {
            return Err(Error::unsupported(format!(
                "expected header version 1 and log version 0, found {} and {}",
                raw.version.get(),
                raw.log_version.get()
            )));
        }
        let (log_offset, log_length) = (raw.log_offset.get(), u64::from(raw.log_length.get()));
        if log_offset < MIB || !log_offset.is_multiple_of(MIB) || log_length == 0 || !log_length.is_multiple_of(MIB) {
            return Err(Error::corrupt(format!(
                "expected a log of whole MiB, found {log_length:#x} bytes at {log_offset:#x}"
            )));
        }
        Ok(Self {
            log_in_use: raw.log_guid != [0; 16],
            raw,
            log_offset,
            log_length,
        })
    }
}

/// Whether a file begins as a VHDX.
pub fn has_file_type(head: &[u8]) -> bool {
    head.starts_with(FILE_TYPE)
}
