//! The chunks of the whole disk, in order, checked.

use zerocopy::FromBytes;

use super::layout::{Kind, Mish, RawChunk, SECTOR};
use crate::{Error, Limits, Result};

/// A part of the disk and where it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    /// First guest byte.
    pub start: u64,
    /// Guest bytes, never 0.
    pub len: u64,
    /// How it is stored.
    pub kind: Kind,
    /// Where in the file.
    pub at: u64,
    /// Stored bytes.
    pub stored: u64,
}

impl Chunk {
    /// First guest byte behind it.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// A block table's own checksum and the range that it covers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub start: u64,
    pub len: u64,
    pub crc32: Option<u32>,
}

/// All chunks and parts of a disk.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub chunks: Vec<Chunk>,
    pub parts: Vec<Part>,
}

impl Table {
    /// Adds one block table.
    ///
    /// # Errors
    /// `Corrupt` with the number of the chunk, `LimitExceeded`.
    pub(super) fn add(&mut self, blob: &[u8], data_fork: u64, file_len: u64, limits: &Limits) -> Result<()> {
        let short = |_| Error::corrupt("a block table is cut short");
        let (mish, rest) = Mish::read_from_prefix(blob).map_err(short)?;
        if &mish.magic != b"mish" {
            return Err(Error::corrupt("a block table does not begin with 'mish'"));
        }
        let count = u64::from(mish.chunks.get());
        if count * size_of::<RawChunk>() as u64 > rest.len() as u64 {
            return Err(Error::corrupt(format!(
                "a block table claims {count} chunks in {} bytes",
                rest.len()
            )));
        }
        if (self.chunks.len() as u64 + count) * size_of::<Chunk>() as u64 > limits.table_bytes {
            return Err(Error::limit("the block tables have too many chunks"));
        }
        let base = data_fork.checked_add(mish.data_offset.get());
        let first = mish.first_sector.get();
        for (number, bytes) in rest.chunks_exact(size_of::<RawChunk>()).enumerate() {
            if number as u64 == count {
                break;
            }
            let raw = RawChunk::read_from_bytes(bytes).map_err(|_| Error::corrupt("a chunk is cut short"))?;
            let chunk = check(&raw, first, base, file_len).map_err(|e| e.at(format!("chunk {number}")))?;
            self.chunks.extend(chunk);
        }
        let range = range(first, mish.sectors.get());
        let (start, len) = range.ok_or_else(|| Error::corrupt("a block table covers an impossible range"))?;
        self.parts.push(Part {
            start,
            len,
            crc32: mish.checksum.crc32(),
        });
        Ok(())
    }

    /// Sorts the chunks.
    ///
    /// # Errors
    /// `Corrupt` when two overlap.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.chunks.sort_by_key(|c| c.start);
        for pair in self.chunks.windows(2) {
            if let [a, b] = pair
                && a.end() > b.start
            {
                return Err(Error::corrupt(format!(
                    "chunks overlap: {:#x}..{:#x} and {:#x}..{:#x}",
                    a.start,
                    a.end(),
                    b.start,
                    b.end()
                )));
            }
        }
        Ok(())
    }

    /// The chunk at `offset`, or where the gap there ends.
    pub(super) fn at(&self, offset: u64) -> std::result::Result<&Chunk, u64> {
        let next = self.chunks.partition_point(|c| c.end() <= offset);
        match self.chunks.get(next) {
            Some(chunk) if chunk.start <= offset => Ok(chunk),
            Some(chunk) => Err(chunk.start),
            None => Err(u64::MAX),
        }
    }
}

/// Bytes of a range of sectors.
fn range(first: u64, sectors: u64) -> Option<(u64, u64)> {
    let (start, len) = (first.checked_mul(SECTOR)?, sectors.checked_mul(SECTOR)?);
    start.checked_add(len).filter(|end| *end <= i64::MAX as u64)?;
    Some((start, len))
}

/// Checks a chunk. `None` for one that describes no part of the disk.
fn check(raw: &RawChunk, first: u64, base: Option<u64>, file_len: u64) -> Result<Option<Chunk>> {
    let Some(kind) = Kind::of(raw.kind.get()) else {
        return Ok(None);
    };
    let sector = first.checked_add(raw.sector.get());
    let Some((start, len)) = sector.and_then(|s| range(s, raw.sectors.get())) else {
        return Err(Error::corrupt(format!(
            "sector count {:#x} at sector {:#x} is too large",
            raw.sectors, raw.sector
        )));
    };
    if len == 0 {
        return Ok(None);
    }
    let stored = match kind {
        Kind::Zero | Kind::Ignore | Kind::Unknown(_) => 0,
        Kind::Raw | Kind::Packed(_) => raw.len.get(),
    };
    let at = base.and_then(|b| b.checked_add(raw.offset.get()));
    let end = at.and_then(|at| at.checked_add(stored));
    if stored > 0 && end.is_none_or(|e| e > file_len) {
        return Err(Error::corrupt(format!(
            "{stored} bytes at {:#x} end past the end of the file at {file_len:#x}",
            raw.offset
        )));
    }
    if kind == Kind::Raw && stored < len {
        return Err(Error::corrupt(format!(
            "a raw chunk of {len} bytes is stored in {stored}"
        )));
    }
    Ok(Some(Chunk {
        start,
        len,
        kind,
        at: at.unwrap_or(0),
        // What is stored behind the sectors of a raw chunk is nobody's.
        stored: if kind == Kind::Raw { len } else { stored },
    }))
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::ErrorKind;
    use crate::formats::dmg::layout::{RawChecksum, kind};

    fn table(chunks: &[[u64; 5]]) -> Vec<u8> {
        let mish = Mish {
            magic: *b"mish",
            version: 1.into(),
            first_sector: 0.into(),
            sectors: 100.into(),
            data_offset: 0.into(),
            buffers: 0.into(),
            descriptor: 0.into(),
            reserved: [0; 24],
            checksum: RawChecksum::NONE,
            chunks: (chunks.len() as u32).into(),
        };
        let raw = |c: &[u64; 5]| RawChunk {
            kind: (c[0] as u32).into(),
            comment: 0.into(),
            sector: c[1].into(),
            sectors: c[2].into(),
            offset: c[3].into(),
            len: c[4].into(),
        };
        let chunks = chunks.iter().flat_map(|c| raw(c).as_bytes().to_vec());
        mish.as_bytes().iter().copied().chain(chunks).collect()
    }

    fn add(blob: &[u8]) -> Result<Table> {
        let mut all = Table::default();
        all.add(blob, 0, 1 << 20, &Limits::default())?;
        all.finish()?;
        Ok(all)
    }

    #[test]
    fn bad_chunks_are_refused() {
        let zlib = u64::from(kind::ZLIB);
        for chunks in [
            &[[zlib, 0, 1 << 63, 0, 10]][..],
            &[[zlib, 1 << 63, 1, 0, 10]],
            &[[zlib, 0, 8, 0, 1 << 63]],
            &[[zlib, 0, 8, u64::MAX, 2]],
            &[[zlib, 0, 8, 1 << 20, 1]],
            &[[0, 0, 1 << 62, 0, 0]],
            &[[1, 0, 8, 0, 4095]],
            &[[0, 0, 8, 0, 0], [0, 7, 8, 0, 0]],
        ] {
            assert_eq!(
                add(&table(chunks)).unwrap_err().kind(),
                ErrorKind::Corrupt,
                "{chunks:?}"
            );
        }
        let mut claims = table(&[[0, 0, 8, 0, 0]]);
        claims[200..204].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(add(&claims).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn chunks_out_of_order_are_sorted_and_gaps_are_known() {
        let all = add(&table(&[
            [0, 50, 8, 0, 0],
            [1, 0, 8, 0, 4096 + 100],
            [0xffff_ffff, 0, 0, 0, 0],
        ]))
        .unwrap();
        assert_eq!(all.at(0).unwrap().kind, Kind::Raw);
        assert_eq!(all.at(0).unwrap().stored, 4096, "more is stored than its sectors");
        assert_eq!(all.at(4096), Err(50 * 512));
        assert_eq!(all.at(58 * 512), Err(u64::MAX));
    }
}
