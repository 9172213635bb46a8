//! An open file.
//!
//! Order of writes: data, flush, bitmap, flush. Bits are set in memory after their data was written, under the lock that a flush
//! takes, so that the bitmap in the file never speaks of data that is not stable.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::layout::{self, Header, MAX_HEADER};
use crate::formats::common::{check_range, lock, read_below, read_table};
use crate::image::{BackingReference, Below, BulkWrite, Extent, ExtentKind, HostPlace, ImageInfo, Placement, Scratch};
use crate::storage::read_padded;
use crate::{Error, Image, OpenEnv, Result, StorageRef};

/// Bytes of the bitmap that are written together.
const BLOCK: usize = 512;
/// Sectors that one search for a run looks at.
const MAX_RUN: u64 = 1 << 27;
/// Bytes that one allocating write handles at once.
const BATCH: u64 = 4 << 20;

struct Bits {
    bytes: Vec<u8>,
    dirty: BTreeSet<usize>,
    broken: bool,
}

/// An open layer.
pub(super) struct CowImage {
    file: StorageRef,
    header: Header,
    backing: Mutex<Option<BackingReference>>,
    bits: Mutex<Bits>,
}

fn reference(name: &str) -> Option<BackingReference> {
    (!name.is_empty()).then(|| BackingReference {
        name: name.to_owned(),
        format: Some("raw".to_owned()),
    })
}

impl Bits {
    fn get(&self, sector: u64) -> bool {
        let byte = usize::try_from(sector / 8).ok().and_then(|n| self.bytes.get(n));
        byte.is_some_and(|b| b >> (sector % 8) & 1 == 1)
    }

    /// Whether `sector` is there and how many sectors up to `max` are like it.
    fn run(&self, sector: u64, max: u64) -> (bool, u64) {
        let there = self.get(sector);
        let same = if there { 0xff } else { 0 };
        let mut count = 1;
        while count < max.min(MAX_RUN) {
            let next = sector + count;
            let byte = usize::try_from(next / 8).ok().and_then(|n| self.bytes.get(n));
            if next.is_multiple_of(8) && max - count >= 8 && byte.copied().unwrap_or(0) == same {
                count += 8;
            } else if self.get(next) == there {
                count += 1;
            } else {
                break;
            }
        }
        (there, count)
    }

    fn set(&mut self, first: u64, count: u64) -> Result<()> {
        for sector in first..first + count {
            let index = usize::try_from(sector / 8).unwrap_or(usize::MAX);
            let Some(byte) = self.bytes.get_mut(index) else {
                return Err(Error::unsupported(format!("the bitmap has no bit for sector {sector}")));
            };
            *byte |= 1 << (sector % 8);
            self.dirty.insert(index / BLOCK);
        }
        Ok(())
    }
}

impl CowImage {
    pub(super) fn open(file: StorageRef, env: &OpenEnv<'_>) -> Result<Self> {
        let len = usize::try_from(file.len()?).unwrap_or(usize::MAX).min(MAX_HEADER);
        let mut bytes = vec![0; MAX_HEADER];
        read_padded(file.as_ref(), 0, &mut bytes)?;
        bytes.truncate(len);
        let header = layout::check(&bytes)?;
        let bytes = read_table(
            file.as_ref(),
            "the bitmap",
            header.bitmap_at,
            header.bitmap_len,
            env.limits,
        )?;
        Ok(Self {
            backing: Mutex::new(reference(&header.backing)),
            bits: Mutex::new(Bits {
                bytes,
                dirty: BTreeSet::new(),
                broken: false,
            }),
            file,
            header,
        })
    }

    /// Whether the bytes at `offset` are there, and how many bytes up to `len` are like them.
    fn run(&self, bits: &Bits, offset: u64, len: u64) -> (bool, u64) {
        let sector = self.header.sector;
        let inside = offset % sector;
        let (there, count) = bits.run(offset / sector, (inside + len).div_ceil(sector).max(1));
        (there, (count * sector - inside).min(len))
    }

    fn place(&self, offset: u64) -> u64 {
        self.header.data_at + offset
    }

    /// Writes into sectors that are not there, with what surrounds the data in them; sets their bits. Returns the bytes taken.
    fn write_new(&self, offset: u64, buf: &[u8], below: &dyn Below) -> Result<u64> {
        let mut bits = lock(&self.bits);
        let (there, bytes) = self.run(&bits, offset, (buf.len() as u64).min(BATCH));
        if there {
            return Ok(0); // Another write was faster: look again.
        }
        let sector = self.header.sector;
        let (start, end) = (offset / sector * sector, offset + bytes);
        let stop = end.next_multiple_of(sector).min(self.header.size);
        let data = buf.get(..usize::try_from(bytes).unwrap_or(0)).unwrap_or_default();
        if start == offset && stop == end {
            self.file.write_at(self.place(start), data)?;
        } else {
            let mut whole = vec![0; usize::try_from(stop - start).unwrap_or(0)];
            read_below(below, start, &mut whole, self.header.size)?;
            let from = usize::try_from(offset - start).unwrap_or(0);
            if let Some(place) = whole.get_mut(from..from + data.len()) {
                place.copy_from_slice(data);
            }
            self.file.write_at(self.place(start), &whole)?;
        }
        bits.set(start / sector, (stop - start).div_ceil(sector))?;
        Ok(bytes)
    }

    /// Zeroes whole sectors that are not there without storing bytes.
    fn zero_new(&self, offset: u64, len: u64, unmap: bool) -> Result<u64> {
        let mut bits = lock(&self.bits);
        let (there, bytes) = self.run(&bits, offset, len);
        if there {
            return Ok(0);
        }
        self.file.write_zeroes(self.place(offset), bytes, unmap)?;
        bits.set(offset / self.header.sector, bytes.div_ceil(self.header.sector))?;
        Ok(bytes)
    }

    fn write_out(&self, bits: &mut Bits) -> Result<()> {
        self.file.flush()?;
        for number in &bits.dirty {
            let block = bits.bytes.chunks(BLOCK).nth(*number).unwrap_or_default();
            self.file
                .write_at(self.header.bitmap_at + (number * BLOCK) as u64, block)?;
        }
        if !bits.dirty.is_empty() {
            self.file.flush()?;
        }
        bits.dirty.clear();
        Ok(())
    }
}

impl Image for CowImage {
    fn format(&self) -> &'static str {
        "cow"
    }
    fn virtual_size(&self) -> u64 {
        self.header.size
    }
    fn backing(&self) -> Option<BackingReference> {
        lock(&self.backing).clone()
    }
    fn info(&self) -> Result<ImageInfo> {
        let mut specific = serde_json::Map::new();
        specific.insert("version".to_owned(), self.header.version.into());
        specific.insert("backing-mtime".to_owned(), self.header.mtime.into());
        Ok(ImageInfo {
            cluster_size: Some(self.header.sector),
            specific: Some(specific),
            ..ImageInfo::default()
        })
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.file.clone()]
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        check_range(offset, len, self.header.size)?;
        let (there, len) = self.run(&lock(&self.bits), offset, len);
        let kind = if there {
            let offset = self.place(offset);
            ExtentKind::Data {
                at: Some(HostPlace { file: 0, offset }),
                direct: true,
            }
        } else {
            ExtentKind::Unallocated
        };
        Ok(Extent { len, kind })
    }
    fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.header.size)?;
        while !buf.is_empty() {
            let (there, bytes) = self.run(&lock(&self.bits), offset, buf.len() as u64);
            let (head, rest) = buf.split_at_mut(usize::try_from(bytes).unwrap_or(usize::MAX).min(buf.len()));
            if there {
                self.file.read_at(self.place(offset), head)?;
            } else {
                head.fill(0);
            }
            offset += bytes;
            buf = rest;
        }
        Ok(())
    }
    fn write(&self, mut offset: u64, mut buf: &[u8], below: &dyn Below) -> Result<()> {
        check_range(offset, buf.len() as u64, self.header.size)?;
        while !buf.is_empty() {
            let (there, bytes) = self.run(&lock(&self.bits), offset, buf.len() as u64);
            let done = if there {
                let head = buf.get(..usize::try_from(bytes).unwrap_or(0)).unwrap_or_default();
                self.file.write_at(self.place(offset), head)?;
                bytes
            } else {
                self.write_new(offset, buf, below)?
            };
            offset += done;
            buf = buf
                .get(usize::try_from(done).unwrap_or(usize::MAX)..)
                .unwrap_or_default();
        }
        Ok(())
    }
    fn write_zeroes(&self, mut offset: u64, mut len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        check_range(offset, len, self.header.size)?;
        let sector = self.header.sector;
        while len > 0 {
            let (there, bytes) = self.run(&lock(&self.bits), offset, len);
            let whole = if offset + bytes == self.header.size {
                bytes
            } else {
                ((offset + bytes) / sector * sector).saturating_sub(offset)
            };
            let done = if there {
                self.file.write_zeroes(self.place(offset), bytes, unmap)?;
                bytes
            } else if below.is_zero(offset, bytes)? {
                bytes
            } else if offset.is_multiple_of(sector) && whole > 0 {
                self.zero_new(offset, whole, unmap)?
            } else {
                let n = bytes.min(sector - offset % sector);
                self.write(offset, &vec![0; usize::try_from(n).unwrap_or(0)], below)?;
                n
            };
            offset += done;
            len -= done;
        }
        Ok(())
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        Some(self)
    }
    fn resumable(&self) -> bool {
        true
    }
    fn flush(&self) -> Result<()> {
        let mut bits = lock(&self.bits);
        if bits.broken {
            return Err(Error::io(
                "an earlier flush failed: what is stable is not known",
                std::io::Error::from(std::io::ErrorKind::Other),
            )
            .at(self.file.name()));
        }
        let result = self.write_out(&mut bits);
        bits.broken = result.is_err();
        result
    }
    fn set_backing(&self, backing: Option<&BackingReference>) -> Result<()> {
        if self.header.version != 3 {
            return Err(self.cannot("change the backing file of a version 1 or 2"));
        }
        if let Some(format) = backing.and_then(|b| b.format.as_deref())
            && format != "raw"
        {
            return Err(Error::unsupported("the backing file of a COW file is raw"));
        }
        let name = backing.map_or("", |b| b.name.as_str());
        // The wide variant of version 3 has its name four bytes later.
        let wide = self.name_is_late()?;
        let at = if wide { 36 } else { 32 };
        self.file.write_at(at, &layout::name_field(name)?)?;
        self.file.flush()?;
        *lock(&self.backing) = reference(name);
        Ok(())
    }
    fn make_empty(&self) -> Result<()> {
        let mut bits = lock(&self.bits);
        self.file
            .write_zeroes(self.header.bitmap_at, self.header.bitmap_len, false)?;
        self.file.flush()?;
        bits.bytes.fill(0);
        bits.dirty.clear();
        self.file.discard(self.header.data_at, self.header.size)
    }
}

impl CowImage {
    /// Whether the sector size stands where the wide variant of version 3 has it.
    fn name_is_late(&self) -> Result<bool> {
        let mut field = [0; 4];
        self.file.read_at(20, &mut field)?;
        Ok(u64::from(u32::from_be_bytes(field)) != self.header.sector)
    }
}

impl BulkWrite for CowImage {
    fn unit(&self) -> u64 {
        self.header.sector.max(4096)
    }
    fn encodes(&self) -> bool {
        false
    }
    fn sparse_store(&self) -> bool {
        self.file.can_resize()
    }
    fn encode(&self, _data: &[u8], _scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    fn place(&self, offset: u64, len: u64, encoded: Option<u64>) -> Result<Placement> {
        if encoded.is_some() {
            return Err(self.cannot("compress"));
        }
        check_range(offset, len, self.header.size)?;
        let sector = self.header.sector;
        if !offset.is_multiple_of(sector) {
            return Err(Error::invalid(format!("{offset:#x} is not the start of a sector")));
        }
        lock(&self.bits).set(offset / sector, len.div_ceil(sector))?;
        Ok(Placement {
            guest: offset,
            at: HostPlace {
                file: 0,
                offset: self.place(offset),
            },
            len,
            encoded: false,
        })
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.file.write_at(placement.at.offset, bytes)
    }
}
