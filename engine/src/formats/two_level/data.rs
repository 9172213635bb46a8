//! Guest data: reading, copy on write, zeroes, compressed clusters, filling a new image.

use std::sync::atomic::Ordering;

use super::{Codec, Slot, TwoLevel};
use crate::crypto::{EncryptedBytes, SectorCipher};
use crate::formats::common::{check_range, lock, read_below};
use crate::image::{Below, Extent, ExtentKind, HostPlace, Placement};
use crate::storage::StorageRef;
use crate::{Error, Result};

/// Clusters that one allocating write or zeroing handles at once, at most.
const BATCH: u64 = 4096;

impl<C: Codec> TwoLevel<C> {
    /// Reads guest data that is not compressed.
    fn load_data(&self, guest: u64, at: u64, buf: &mut [u8]) -> Result<()> {
        match self.codec.cipher()? {
            None => self.file.read_at(at, buf),
            Some(cipher) => self.encrypted(cipher, |io| io.load(guest, at, buf)),
        }
    }

    /// Writes guest data that is not compressed.
    fn store_data(&self, guest: u64, at: u64, bytes: &[u8]) -> Result<()> {
        let Some(cipher) = self.codec.cipher()? else {
            return self.file.write_at(at, bytes);
        };
        self.encrypted(cipher, |io| {
            let _alone = io.is_partial(at, bytes.len()).then(|| lock(&self.partial));
            io.store(guest, at, bytes)
        })
    }

    fn encrypted<T>(&self, cipher: &SectorCipher, work: impl FnOnce(&EncryptedBytes<'_>) -> Result<T>) -> Result<T> {
        work(&EncryptedBytes {
            cipher,
            read: &|at, buf| self.file.read_at(at, buf),
            write: &|at, bytes| self.file.write_at(at, bytes),
        })
    }

    pub(in crate::formats) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }
    pub(in crate::formats) fn cluster(&self) -> u64 {
        self.shape.cluster
    }
    pub(in crate::formats) fn file(&self) -> &StorageRef {
        &self.file
    }

    pub(in crate::formats) fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        check_range(offset, len, self.size())?;
        let inside = offset % self.shape.cluster;
        let clusters = (inside + len).div_ceil(self.shape.cluster);
        let (slot, count) = self.run(offset / self.shape.cluster, clusters.max(1))?;
        let kind = match slot {
            Slot::Unallocated => ExtentKind::Unallocated,
            Slot::Zero => ExtentKind::Zero { at: None },
            Slot::Data(_) if self.codec.encrypted() => ExtentKind::Data {
                at: None,
                direct: false,
            },
            Slot::Data(at) => ExtentKind::Data {
                at: Some(HostPlace {
                    file: 0,
                    offset: at + inside,
                }),
                direct: true,
            },
            Slot::Compressed { .. } => ExtentKind::Compressed,
        };
        let len = count.saturating_mul(self.shape.cluster).saturating_sub(inside).min(len);
        Ok(Extent { len, kind })
    }

    pub(in crate::formats) fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size())?;
        while !buf.is_empty() {
            let (slot, bytes) = self.slot_run(offset, buf.len() as u64)?;
            let inside = offset % self.shape.cluster;
            let one = (self.shape.cluster - inside).min(bytes);
            let bytes = if matches!(slot, Slot::Compressed { .. }) {
                one
            } else {
                bytes
            };
            let (head, rest) = buf.split_at_mut(usize::try_from(bytes).unwrap_or(usize::MAX));
            match slot {
                Slot::Unallocated | Slot::Zero => head.fill(0),
                Slot::Data(at) => self.load_data(offset, at + inside, head)?,
                Slot::Compressed { .. } => self.read_compressed(offset, head)?,
            }
            offset += bytes;
            buf = rest;
        }
        Ok(())
    }

    /// The slot at an offset and how many bytes from there on continue it, at most `len`.
    fn slot_run(&self, offset: u64, len: u64) -> Result<(Slot, u64)> {
        let inside = offset % self.shape.cluster;
        let (slot, count) = self.run(
            offset / self.shape.cluster,
            (inside + len).div_ceil(self.shape.cluster).max(1),
        )?;
        Ok((slot, (count.saturating_mul(self.shape.cluster) - inside).min(len)))
    }

    /// Reads part of one compressed cluster.
    fn read_compressed(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut whole = vec![0; usize::try_from(self.shape.cluster).unwrap_or(0)];
        let (slot, _) = self.run(offset / self.shape.cluster, 1)?;
        self.old_content(
            slot,
            offset / self.shape.cluster,
            &crate::image::NothingBelow,
            &mut whole,
        )?;
        let start = usize::try_from(offset % self.shape.cluster).unwrap_or(usize::MAX);
        let part = whole.get(start..start.saturating_add(out.len()));
        out.copy_from_slice(part.ok_or_else(|| Error::invalid("read crosses a cluster border"))?);
        Ok(())
    }

    /// What a cluster reads as now; `whole` is one cluster.
    fn old_content(&self, slot: Slot, cluster: u64, below: &dyn Below, whole: &mut [u8]) -> Result<()> {
        match slot {
            Slot::Unallocated => read_below(below, cluster * self.shape.cluster, whole, self.size()),
            Slot::Zero => {
                whole.fill(0);
                Ok(())
            }
            Slot::Data(at) => self.load_data(cluster * self.shape.cluster, at, whole),
            Slot::Compressed { at, len } => {
                let mut packed = vec![0; usize::try_from(len).unwrap_or(0)];
                self.file.read_at(at, &mut packed)?;
                self.codec
                    .inflate(&packed, whole)
                    .map_err(|e| e.at(format!("{}: cluster {cluster}", self.file.name())))
            }
        }
    }

    pub(in crate::formats) fn write(&self, mut offset: u64, mut buf: &[u8], below: &dyn Below) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size())?;
        while !buf.is_empty() {
            let (slot, bytes) = self.slot_run(offset, buf.len() as u64)?;
            let done = match slot {
                Slot::Data(at) => {
                    self.refuse_double_use()?;
                    let head = buf.get(..usize::try_from(bytes).unwrap_or(0)).unwrap_or_default();
                    self.store_data(offset, at + offset % self.shape.cluster, head)?;
                    bytes
                }
                _ => self.write_new(offset, buf, below)?,
            };
            offset += done;
            buf = buf
                .get(usize::try_from(done).unwrap_or(usize::MAX)..)
                .unwrap_or_default();
            self.relieve()?;
        }
        Ok(())
    }

    /// Writes into clusters that have no plain place yet: gives them one, with what the write does not cover copied, and only then
    /// lets the tables refer to it. Returns how many bytes it took from `buf`.
    fn write_new(&self, offset: u64, buf: &[u8], below: &dyn Below) -> Result<u64> {
        let unit = self.shape.cluster;
        let mut space = lock(&self.space);
        let (slot, bytes) = self.slot_run(offset, (buf.len() as u64).min(BATCH * unit))?;
        if let Slot::Data(_) = slot {
            return Ok(0); // Another write was faster: look again.
        }
        let inside = offset % unit;
        let bytes = if matches!(slot, Slot::Compressed { .. }) {
            bytes.min(unit - inside)
        } else {
            bytes
        };
        let (cluster, count) = (offset / unit, (inside + bytes).div_ceil(unit));
        let before = space.end;
        let at = self.take(&mut space, count * unit, self.shape.alignment)?;
        let data = buf.get(..usize::try_from(bytes).unwrap_or(0)).unwrap_or_default();
        if let Err(e) = self.store_new(at, offset, data, slot, below) {
            space.end = before;
            self.end.store(before, Ordering::Release);
            return Err(e);
        }
        self.set_run(&mut space, cluster, count, Slot::Data(at))?;
        Ok(bytes)
    }

    fn store_new(&self, at: u64, offset: u64, data: &[u8], slot: Slot, below: &dyn Below) -> Result<()> {
        let unit = self.shape.cluster;
        let (inside, end) = (offset % unit, offset + data.len() as u64);
        if inside == 0 && end % unit == 0 {
            return self.store_data(offset, at, data);
        }
        let (first, last) = (offset / unit, (end - 1) / unit);
        let cluster_bytes = usize::try_from(unit).unwrap_or(0);
        let mut whole = vec![0; usize::try_from((last - first + 1) * unit).unwrap_or(0)];
        if inside != 0 || first == last {
            let head = whole.get_mut(..cluster_bytes).unwrap_or_default();
            self.old_content(slot, first, below, head)?;
        }
        if end % unit != 0 && last != first {
            let start = whole.len() - cluster_bytes;
            let tail = whole.get_mut(start..).unwrap_or_default();
            self.old_content(slot, last, below, tail)?;
        }
        let start = usize::try_from(inside).unwrap_or(usize::MAX);
        if let Some(place) = whole.get_mut(start..start.saturating_add(data.len())) {
            place.copy_from_slice(data);
        }
        self.store_data(offset - inside, at, &whole)
    }

    pub(in crate::formats) fn write_zeroes(
        &self,
        mut offset: u64,
        mut len: u64,
        unmap: bool,
        below: &dyn Below,
    ) -> Result<()> {
        check_range(offset, len, self.size())?;
        let unit = self.shape.cluster;
        while len > 0 {
            let (slot, bytes) = self.slot_run(offset, len.min(BATCH * unit))?;
            let inside = offset % unit;
            let whole_until = if offset + bytes == self.size() {
                offset + bytes
            } else {
                (offset + bytes) / unit * unit
            };
            let done = match slot {
                Slot::Zero => bytes,
                Slot::Unallocated if below.is_zero(offset, bytes)? => bytes,
                Slot::Data(at) if !self.codec.encrypted() => {
                    self.refuse_double_use()?;
                    self.file.write_zeroes(at + inside, bytes, unmap)?;
                    bytes
                }
                _ if inside == 0 && whole_until > offset && self.codec.encode(Slot::Zero).is_some() => {
                    self.mark_zero(offset, whole_until - offset)?
                }
                _ => {
                    let n = bytes.min(unit - inside);
                    self.write(offset, &vec![0; usize::try_from(n).unwrap_or(0)], below)?;
                    n
                }
            };
            offset += done;
            len -= done;
            self.relieve()?;
        }
        Ok(())
    }

    /// Marks whole clusters as zero. Only clusters without a plain place are marked: a place in use is never lost.
    fn mark_zero(&self, offset: u64, len: u64) -> Result<u64> {
        let mut space = lock(&self.space);
        let (slot, bytes) = self.slot_run(offset, len)?;
        if let Slot::Data(_) = slot {
            return Ok(0);
        }
        self.set_run(
            &mut space,
            offset / self.shape.cluster,
            bytes.div_ceil(self.shape.cluster),
            Slot::Zero,
        )?;
        Ok(bytes)
    }

    /// Stores one cluster in the encoded form given, or as it is where that is no gain.
    pub(in crate::formats) fn write_encoded(&self, offset: u64, data: &[u8], packed: Option<&[u8]>) -> Result<()> {
        check_range(offset, data.len() as u64, self.size())?;
        let Some(packed) = packed else {
            return self.write(offset, data, &crate::image::NothingBelow);
        };
        let mut space = lock(&self.space);
        let before = space.end;
        let at = self.take(&mut space, packed.len() as u64, 1)?;
        if let Err(e) = self.file.write_at(at, packed) {
            space.end = before;
            self.end.store(before, Ordering::Release);
            return Err(e);
        }
        let len = packed.len() as u64;
        self.set_run(&mut space, offset / self.shape.cluster, 1, Slot::Compressed { at, len })?;
        drop(space);
        self.relieve()
    }

    /// Gives a run of new clusters (or one encoded cluster) its place, for [`BulkWrite`](crate::image::BulkWrite).
    pub(in crate::formats) fn place(&self, offset: u64, len: u64, encoded: Option<u64>) -> Result<Placement> {
        check_range(offset, len, self.size())?;
        let unit = self.shape.cluster;
        if !offset.is_multiple_of(unit) {
            return Err(Error::invalid(format!("{offset:#x} is not the start of a cluster")));
        }
        let mut space = lock(&self.space);
        let (at, slot, count) = match encoded {
            Some(bytes) => {
                let at = self.take(&mut space, bytes, 1)?;
                (at, Slot::Compressed { at, len: bytes }, 1)
            }
            None => {
                let count = len.div_ceil(unit);
                let at = self.take(&mut space, count * unit, self.shape.alignment)?;
                (at, Slot::Data(at), count)
            }
        };
        self.set_run(&mut space, offset / unit, count, slot)?;
        Ok(Placement {
            guest: offset,
            at: HostPlace { file: 0, offset: at },
            len: encoded.unwrap_or(len),
            encoded: encoded.is_some(),
        })
    }

    /// Writes a placement or a part of one. What is never stored reads as zeroes: it was taken past the end of the file, and the
    /// flush makes the file long enough.
    pub(in crate::formats) fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        if placement.encoded {
            return self.file.write_at(placement.at.offset, bytes);
        }
        self.store_data(placement.guest, placement.at.offset, bytes)
    }
}
