//! cloop 2.0 on disk: a shell script of 128 bytes, block size and count, offsets of the zlib streams; all big-endian. Source: cloop's
//! README and QEMU's block/cloop.c, whose bounds these are.

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Error, Result};

/// What every version 2.0 file starts with.
pub(super) const MAGIC: &[u8] =
    b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n";
/// What the scripts of version 2.0 start with, by which they are known.
pub(super) const KNOWN: &[u8] = b"#!/bin/sh\n#V2.0 Format\n";
/// Largest block.
pub(super) const MAX_BLOCK: u64 = 64 << 20;
/// Largest table of offsets.
const MAX_TABLE: u64 = 512 << 20;

/// The header as stored.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    /// A shell script.
    pub script: [u8; 128],
    /// Bytes of an uncompressed block: a multiple of 512.
    pub block_size: U32,
    /// Blocks; one more offset than that follows.
    pub blocks: U32,
}

/// Bytes of [`RawHeader`]; the offsets follow.
pub(super) const HEADER_LEN: usize = size_of::<RawHeader>();
const _: () = assert!(HEADER_LEN == 136);

/// A header whose numbers are good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// Bytes of a block.
    pub block: u64,
    /// Blocks.
    pub blocks: u64,
}

impl Header {
    /// Bytes of the table of offsets.
    pub fn table_bytes(&self) -> u64 {
        (self.blocks + 1) * 8
    }
    /// Where the first stream can be.
    pub fn data_at(&self) -> u64 {
        HEADER_LEN as u64 + self.table_bytes()
    }
    /// Bytes that a stream of one block can have at most, with room for bad encoders.
    pub fn max_stream(&self) -> u64 {
        self.block * 2 + (64 << 10)
    }
}

/// Checks a header. Its script is not looked at but for its first line: that of version 1.0 is another one, and a format that is given counts.
///
/// # Errors
/// `NotThisFormat`, `Corrupt` with the field's name.
pub(super) fn check(bytes: &[u8]) -> Result<Header> {
    let short = |_| Error::not_this_format("shorter than a cloop header");
    let raw = RawHeader::read_from_prefix(bytes).map_err(short)?.0;
    if !raw.script.starts_with(b"#!") {
        return Err(Error::not_this_format("no cloop script at offset 0"));
    }
    let header = Header {
        block: raw.block_size.get().into(),
        blocks: raw.blocks.get().into(),
    };
    if header.block == 0 {
        return Err(Error::corrupt("block size cannot be zero"));
    }
    if !header.block.is_multiple_of(512) {
        return Err(Error::corrupt(format!(
            "block size {} must be a multiple of 512",
            header.block
        )));
    }
    if header.block > MAX_BLOCK {
        return Err(Error::corrupt(format!(
            "block size {} must be 64 MB or less",
            header.block
        )));
    }
    if header.table_bytes() > MAX_TABLE {
        return Err(Error::corrupt(format!(
            "{} blocks need too many offsets: try increasing block size",
            header.blocks
        )));
    }
    Ok(header)
}

/// Checks the offsets: they rise, and lie between the table and the end of the file.
///
/// # Errors
/// `Corrupt` with the number of the block.
pub(super) fn check_offsets(header: &Header, offsets: &[u64], file_len: u64) -> Result<()> {
    let mut last = header.data_at();
    for (number, offset) in offsets.iter().enumerate() {
        if *offset < last {
            return Err(Error::corrupt(format!(
                "offsets not monotonically increasing at index {number}, image file is corrupt"
            )));
        }
        if number > 0 && *offset - last > header.max_stream() {
            return Err(Error::corrupt(format!(
                "invalid compressed block size {} at index {number}, image file is corrupt",
                *offset - last
            )));
        }
        last = *offset;
    }
    if last > file_len {
        return Err(Error::corrupt(format!(
            "the last block ends at {last:#x}, past the end of the file at {file_len:#x}"
        )));
    }
    Ok(())
}

/// The header of a new image.
pub(super) fn new_header(block: u32, blocks: u32) -> RawHeader {
    let mut script = [0; 128];
    for (to, from) in script.iter_mut().zip(MAGIC) {
        *to = *from;
    }
    RawHeader {
        script,
        block_size: block.into(),
        blocks: blocks.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn every_bad_field_is_refused_by_name() {
        for (word, block, blocks) in [
            ("block size", 0, 1),
            ("block size", 513, 1),
            ("block size", 0xffff_fe00, 1),
            ("blocks", 512, u32::MAX),
            ("blocks", 512, 0x0400_0000),
        ] {
            let error = check(new_header(block, blocks).as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }

    /// qemu-img 10.0.2 reads these with `-f cloop`, too.
    #[test]
    fn the_script_of_version_1_is_read() {
        let mut header = new_header(512, 2);
        for script in [
            &b"#!/bin/sh\n#V1.0 Format\ninsmod cloop.o file=$0 && mount -r -t iso9660 /dev/cloop $1\n"[..],
            b"#!/bin/sh\n#V2.0 Format\ninsmod cloop.o file=$0\n",
        ] {
            header.script.fill(0);
            header.script[..script.len()].copy_from_slice(script);
            let found = check(header.as_bytes()).unwrap();
            assert_eq!((found.block, found.blocks), (512, 2));
        }
        header.script[0] = 0;
        assert_eq!(check(header.as_bytes()).unwrap_err().kind(), ErrorKind::NotThisFormat);
    }

    #[test]
    fn offsets_rise_inside_the_file() {
        let header = check(new_header(512, 2).as_bytes()).unwrap();
        let at = header.data_at();
        assert!(check_offsets(&header, &[at, at + 10, at + 30], at + 30).is_ok());
        for bad in [
            [at, at + 10, at + 5],
            [0, at, at],
            [at, at + 10, at + 31],
            [at, at + 200_000, at + 200_001],
            [at, u64::MAX, u64::MAX],
        ] {
            let error = check_offsets(&header, &bad, at + 30).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }
}
