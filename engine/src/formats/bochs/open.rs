//! An open image.

use std::sync::Mutex;

use super::layout::{self, HEADER_LEN, Header, NO_EXTENT, Subtype};
use super::map::{Map, Run};
use crate::formats::common::{check_range, lock, read_below, read_table};
use crate::image::{BackingReference, Below, BulkWrite, Extent, ExtentKind, HostPlace, ImageInfo, Placement, Scratch};
use crate::storage::read_padded;
use crate::{Error, Image, OpenEnv, Result, StorageRef};

const SECTOR: u64 = 512;

/// An open layer.
pub(super) struct BochsImage {
    file: StorageRef,
    header: Header,
    backing: Option<BackingReference>,
    /// Held while sectors that were not there are written, so that a flush never names what it did not make stable.
    map: Mutex<Map>,
}

impl BochsImage {
    pub(super) fn open(file: StorageRef, env: &OpenEnv<'_>) -> Result<Self> {
        let mut bytes = [0; HEADER_LEN];
        read_padded(file.as_ref(), 0, &mut bytes)?;
        let header = layout::check(&bytes)?;
        let raw = read_table(
            file.as_ref(),
            "the catalog",
            header.catalog_at,
            header.catalog * 4,
            env.limits,
        )?;
        let number = |b: &[u8]| b.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b));
        let catalog: Vec<u32> = raw.chunks_exact(4).map(number).collect();
        if env.writable {
            refuse_shared(&catalog)?;
        }
        Ok(Self {
            backing: base_of(header.subtype, file.name())?,
            map: Mutex::new(Map::new(file.clone(), header, catalog, env.limits.cache_bytes)?),
            file,
            header: Header {
                size: header.size / SECTOR * SECTOR,
                ..header
            },
        })
    }

    /// The run at any offset.
    fn run(&self, offset: u64, len: u64) -> Result<Run> {
        let inside = offset % SECTOR;
        let run = lock(&self.map).run(offset - inside, len + inside)?;
        Ok(Run {
            place: run.place.map(|at| at + inside),
            len: (run.len - inside).min(len),
        })
    }

    /// Writes sectors of one extent that are not all there yet: data first, then their bits. Returns the bytes taken.
    fn write_new(&self, offset: u64, buf: &[u8], below: &dyn Below) -> Result<u64> {
        let mut map = lock(&self.map);
        let (start, inside) = (offset - offset % SECTOR, offset % SECTOR);
        let (at, room) = map.make(start)?;
        let bytes = (buf.len() as u64).min(room - inside);
        let data = buf.get(..usize::try_from(bytes).unwrap_or(0)).unwrap_or_default();
        let end = offset + bytes;
        let span = end.next_multiple_of(SECTOR) - start;
        if inside == 0 && end.is_multiple_of(SECTOR) {
            self.file.write_at(at, data)?;
        } else {
            let mut whole = vec![0; usize::try_from(span).unwrap_or(0)];
            self.old_sector(&mut map, start, 0, &mut whole, below)?;
            if span > SECTOR {
                self.old_sector(&mut map, start, span - SECTOR, &mut whole, below)?;
            }
            let from = usize::try_from(inside).unwrap_or(0);
            if let Some(place) = whole.get_mut(from..from + data.len()) {
                place.copy_from_slice(data);
            }
            self.file.write_at(at, &whole)?;
        }
        map.mark(start, span)?;
        if map.is_crowded() {
            map.flush()?;
        }
        Ok(bytes)
    }

    /// Fills one sector of `whole`, which stands for the guest range from `start`, with what the guest sees there.
    fn old_sector(&self, map: &mut Map, start: u64, inside: u64, whole: &mut [u8], below: &dyn Below) -> Result<()> {
        let from = usize::try_from(inside).unwrap_or(usize::MAX);
        let Some(sector) = whole.get_mut(from..from.saturating_add(512)) else {
            return Ok(());
        };
        match map.run(start + inside, SECTOR)?.place {
            Some(at) => self.file.read_at(at, sector),
            None => read_below(below, start + inside, sector, self.header.size),
        }
    }
}

/// A write to an extent that two entries name would change the guest's bytes in both places.
fn refuse_shared(catalog: &[u32]) -> Result<()> {
    let mut extents: Vec<_> = catalog.iter().copied().filter(|n| *n != NO_EXTENT).collect();
    extents.sort_unstable();
    match extents
        .windows(2)
        .find(|pair| pair.first() == pair.last())
        .and_then(<[u32]>::first)
    {
        None => Ok(()),
        Some(extent) => Err(Error::corrupt(format!(
            "two catalog entries name extent {extent:#x}; the image can only be read"
        ))),
    }
}

/// The disk below an undoable or volatile redolog, from the redolog's name.
fn base_of(subtype: Subtype, name: &str) -> Result<Option<BackingReference>> {
    let base = match subtype {
        Subtype::Growing => return Ok(None),
        Subtype::Undoable => name.strip_suffix(".redolog"),
        Subtype::Volatile => name
            .rsplit_once('.')
            .filter(|(_, end)| end.len() == 6)
            .map(|(base, _)| base),
    };
    let base = base.and_then(|b| b.rsplit('/').next()).filter(|b| !b.is_empty());
    let base = base.ok_or_else(|| {
        Error::unsupported("the name of this redolog does not say which disk it belongs to (DISK.redolog is expected)")
    })?;
    Ok(Some(BackingReference {
        name: base.to_owned(),
        format: None,
    }))
}

impl Image for BochsImage {
    fn format(&self) -> &'static str {
        "bochs"
    }
    fn virtual_size(&self) -> u64 {
        self.header.size
    }
    fn backing(&self) -> Option<BackingReference> {
        self.backing.clone()
    }
    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo::default())
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.file.clone()]
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        check_range(offset, len, self.header.size)?;
        let run = self.run(offset, len)?;
        let kind = match run.place {
            None => ExtentKind::Unallocated,
            Some(offset) => ExtentKind::Data {
                at: Some(HostPlace { file: 0, offset }),
                direct: true,
            },
        };
        Ok(Extent { len: run.len, kind })
    }
    fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.header.size)?;
        while !buf.is_empty() {
            let run = self.run(offset, buf.len() as u64)?;
            let (head, rest) = buf.split_at_mut(usize::try_from(run.len).unwrap_or(usize::MAX).min(buf.len()));
            match run.place {
                None => head.fill(0),
                Some(at) => self.file.read_at(at, head)?,
            }
            offset += run.len;
            buf = rest;
        }
        Ok(())
    }
    fn write(&self, mut offset: u64, mut buf: &[u8], below: &dyn Below) -> Result<()> {
        check_range(offset, buf.len() as u64, self.header.size)?;
        while !buf.is_empty() {
            let run = self.run(offset, buf.len() as u64)?;
            let done = match run.place {
                Some(at) => {
                    let head = buf.get(..usize::try_from(run.len).unwrap_or(0)).unwrap_or_default();
                    self.file.write_at(at, head)?;
                    run.len
                }
                None => self.write_new(offset, buf, below)?,
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
        while len > 0 {
            let run = self.run(offset, len)?;
            let done = match run.place {
                Some(at) => {
                    self.file.write_zeroes(at, run.len, unmap)?;
                    run.len
                }
                None if below.is_zero(offset, run.len)? => run.len,
                None => {
                    let n = run.len.min(1 << 20);
                    self.write(offset, &vec![0; usize::try_from(n).unwrap_or(0)], below)?;
                    n
                }
            };
            offset += done;
            len -= done;
        }
        Ok(())
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        Some(self)
    }
    fn flush(&self) -> Result<()> {
        lock(&self.map).flush()
    }
}

impl BulkWrite for BochsImage {
    fn unit(&self) -> u64 {
        4096
    }
    fn encodes(&self) -> bool {
        false
    }
    /// A new extent is zeroed as a whole before anything is stored in it.
    fn sparse_store(&self) -> bool {
        true
    }
    fn encode(&self, _data: &[u8], _scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    fn place(&self, offset: u64, len: u64, encoded: Option<u64>) -> Result<Placement> {
        check_range(offset, len, self.header.size)?;
        if encoded.is_some() {
            return Err(self.cannot("compress"));
        }
        if !offset.is_multiple_of(SECTOR) {
            return Err(Error::invalid(format!("{offset:#x} is not the start of a sector")));
        }
        let (place, len) = lock(&self.map).place(offset, len)?;
        Ok(Placement {
            guest: offset,
            at: HostPlace { file: 0, offset: place },
            len,
            encoded: false,
        })
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.file.write_at(placement.at.offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undoable_redolog_belongs_to_the_disk_of_its_name() {
        let base = |subtype, name| base_of(subtype, name).map(|b| b.map(|b| b.name));
        assert_eq!(base(Subtype::Growing, "a.img").unwrap(), None);
        assert_eq!(
            base(Subtype::Undoable, "/d/a.img.redolog").unwrap().as_deref(),
            Some("a.img")
        );
        assert_eq!(
            base(Subtype::Volatile, "a.img.x1Y2z3").unwrap().as_deref(),
            Some("a.img")
        );
        assert!(base(Subtype::Undoable, "a.img").is_err());
    }
}
