//! Reading the log: finding what was not yet done, and seeing the file as if it had been.

use std::fmt;

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{
    DATA_DESCRIPTOR, DATA_SECTOR, Header, MIB, PAGE, RawDataSector, RawDescriptor, RawEntry, ZERO_DESCRIPTOR, is_sound,
    sectors_of_descriptors,
};
use crate::storage::{FileId, ReadOnlyStorage, StorageExtent, read_padded, read_vec};
use crate::{Error, Limits, Result, Storage, StorageRef};

/// How far past the end of the file a log may ask for it to grow.
const GROWTH: u64 = 1 << 40;
/// Headers are never changed through the log: the first place that may be.
const FIRST_PLACE: u64 = 192 << 10;

/// One change of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Patch {
    Zero {
        offset: u64,
        len: u64,
    },
    Data {
        offset: u64,
        bytes: Box<[u8; PAGE as usize]>,
    },
}

/// What the log says is still to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    patches: Vec<Patch>,
    /// The file must be as long as this.
    last_offset: u64,
}

/// A sound entry of the log.
struct Entry {
    page: u64,
    pages: u64,
    raw: RawEntry,
    bytes: Vec<u8>,
}

struct Log {
    bytes: Vec<u8>,
    pages: u64,
    guid: [u8; 16],
    /// Bytes that may still be summed: what keeps a log of nested claims from taking for ever.
    budget: u64,
}

/// Finds the newest sound sequence of entries.
///
/// # Errors
/// `Corrupt` where there is none although the header says so, or its entries contradict the file.
pub fn find(storage: &dyn Storage, header: &Header, limits: &Limits) -> Result<Option<Replay>> {
    if !header.log_in_use {
        return Ok(None);
    }
    if header.log_length > limits.table_bytes {
        return Err(Error::limit(format!(
            "a log of {} bytes is over the limit",
            header.log_length
        )));
    }
    let len = usize::try_from(header.log_length).map_err(|_| Error::limit("the log exceeds the address space"))?;
    let mut log = Log {
        bytes: read_vec(storage, header.log_offset, len)?,
        pages: header.log_length / PAGE,
        guid: header.raw.log_guid,
        budget: 4 * header.log_length + 64 * MIB,
    };
    let entries = log
        .active()?
        .ok_or_else(|| Error::corrupt("the header says that the log is in use, but there is no sound entry in it"))?;
    Replay::of(&entries, header, storage.len()?).map(Some)
}

/// Number of the last of these entries.
fn newest(entries: &[Entry]) -> u64 {
    entries.last().map_or(0, |e| e.raw.sequence.get())
}

impl Log {
    /// The bytes of `pages` from `page` on, which go round at the end.
    fn part(&self, page: u64, pages: u64) -> Option<Vec<u8>> {
        let (start, len) = (usize::try_from(page * PAGE).ok()?, usize::try_from(pages * PAGE).ok()?);
        let straight = len.min(self.bytes.len().checked_sub(start)?);
        let mut part = self.bytes.get(start..start + straight)?.to_vec();
        part.extend_from_slice(self.bytes.get(..len - straight)?);
        Some(part)
    }

    fn entry(&mut self, page: u64) -> Result<Option<Entry>> {
        let Some(head) = self.part(page, 1) else {
            return Ok(None);
        };
        let Ok((raw, _)) = RawEntry::read_from_prefix(&head) else {
            return Ok(None);
        };
        let (length, count) = (u64::from(raw.length.get()), u64::from(raw.descriptors.get()));
        let pages = length / PAGE;
        let fits = raw.signature == *b"loge"
            && raw.log_guid == self.guid
            && raw.sequence.get() != 0
            && length.is_multiple_of(PAGE)
            && u64::from(raw.tail.get()).is_multiple_of(PAGE)
            && sectors_of_descriptors(count) <= pages
            && pages <= self.pages;
        if !fits {
            return Ok(None);
        }
        self.budget = self
            .budget
            .checked_sub(length)
            .ok_or_else(|| Error::limit("the entries of the log overlap too often"))?;
        let Some(bytes) = self.part(page, pages).filter(|bytes| is_sound(bytes)) else {
            return Ok(None);
        };
        Ok(Some(Entry {
            page,
            pages,
            raw,
            bytes,
        }))
    }

    /// The entries from the tail to the head of the newest sequence (2.3.2 of the specification).
    ///
    /// # Errors
    /// `Corrupt` where a newer entry was written after others that are lost: what is left of the log is too old to be done.
    fn active(&mut self) -> Result<Option<Vec<Entry>>> {
        let mut best: Option<Vec<Entry>> = None;
        // Number and tail (a page) of the newest entry that has no whole sequence before it.
        let mut cut_off = (0, 0);
        let mut start = 0;
        while start < self.pages {
            let (mut sequence, mut taken) = (Vec::<Entry>::new(), 0);
            while taken < self.pages {
                let Some(entry) = self.entry((start + taken) % self.pages)? else {
                    break;
                };
                let follows = sequence
                    .last()
                    .is_none_or(|e| e.raw.sequence.get().checked_add(1) == Some(entry.raw.sequence.get()));
                if !follows || taken + entry.pages > self.pages {
                    break;
                }
                taken += entry.pages;
                sequence.push(entry);
            }
            let tail = sequence.last().map(|head| u64::from(head.raw.tail.get()) / PAGE);
            let first = sequence.iter().position(|e| Some(e.page) == tail);
            let Some(first) = first else {
                cut_off = cut_off.max((newest(&sequence), tail.unwrap_or(0)));
                start += 1;
                continue;
            };
            if newest(&sequence) > best.as_deref().map_or(0, newest) {
                best = Some(sequence.split_off(first));
            }
            start += taken;
        }
        let (number, tail) = cut_off;
        // Behind an entry that was cut short by a power failure others may follow, whose tail is one of the sequence before it.
        if let Some(best) = &best
            && number > newest(best)
            && best.iter().all(|e| e.page != tail)
        {
            return Err(Error::corrupt(format!(
                "the log's entry {number} goes with one at {:#x} that is lost; the newest whole ones end with {}",
                tail * PAGE,
                newest(best)
            )));
        }
        Ok(best)
    }
}

impl Replay {
    fn of(entries: &[Entry], header: &Header, file_len: u64) -> Result<Self> {
        let mut replay = Self {
            patches: Vec::new(),
            last_offset: 0,
        };
        if let Some(head) = entries.last() {
            let (flushed, last) = (head.raw.flushed_offset.get(), head.raw.last_offset.get());
            if flushed > file_len {
                return Err(Error::corrupt(format!(
                    "the log was written when the file had {flushed:#x} bytes; now it has {file_len:#x}"
                )));
            }
            if last > file_len.saturating_add(GROWTH) {
                return Err(Error::corrupt(format!(
                    "the log wants the file to grow to {last:#x} bytes"
                )));
            }
            replay.last_offset = last;
        }
        let end = file_len.max(replay.last_offset);
        for entry in entries {
            replay.add(entry, header, end)?;
        }
        Ok(replay)
    }

    fn add(&mut self, entry: &Entry, header: &Header, end: u64) -> Result<()> {
        let count = entry.raw.descriptors.get() as usize;
        let size = size_of::<RawDescriptor>();
        let descriptors = entry.bytes.get(size_of::<RawEntry>()..).unwrap_or_default();
        let first_data = sectors_of_descriptors(count as u64) * PAGE;
        let data = usize::try_from(first_data).ok().and_then(|at| entry.bytes.get(at..));
        let mut data = data.unwrap_or_default().chunks_exact(PAGE as usize);
        for bytes in descriptors.chunks_exact(size).take(count) {
            let broken = |what: &str| Error::corrupt(format!("a log entry {what}"));
            let descriptor = RawDescriptor::read_from_bytes(bytes).map_err(|_| broken("is cut short"))?;
            if descriptor.sequence != entry.raw.sequence {
                return Err(broken("has a descriptor of another entry"));
            }
            let offset = descriptor.offset.get();
            let patch = match descriptor.signature {
                ZERO_DESCRIPTOR => Patch::Zero {
                    offset,
                    len: u64::from_le_bytes(descriptor.leading),
                },
                DATA_DESCRIPTOR => {
                    let sector = data.next().ok_or_else(|| broken("has fewer data than descriptors"))?;
                    Patch::Data {
                        offset,
                        bytes: restored(&descriptor, sector).ok_or_else(|| broken("has data of another entry"))?,
                    }
                }
                _ => return Err(broken("has a descriptor of an unknown kind")),
            };
            self.patches.push(patch.checked(header, end)?);
        }
        Ok(())
    }

    /// Does all changes in the file and makes them stable.
    pub fn apply(&self, storage: &dyn Storage) -> Result<()> {
        if storage.len()? < self.last_offset {
            storage.set_len(self.last_offset)?;
        }
        for patch in &self.patches {
            match patch {
                Patch::Zero { offset, len } => storage.write_zeroes(*offset, *len, false)?,
                Patch::Data { offset, bytes } => storage.write_at(*offset, bytes.as_slice())?,
            }
        }
        storage.flush()
    }
}

impl Patch {
    fn range(&self) -> (u64, u64) {
        match self {
            Self::Zero { offset, len } => (*offset, *len),
            Self::Data { offset, .. } => (*offset, PAGE),
        }
    }
    fn checked(self, header: &Header, file_end: u64) -> Result<Self> {
        let (offset, len) = self.range();
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= file_end && offset >= FIRST_PLACE);
        let whole = offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE);
        let apart = |end: u64| end <= header.log_offset || offset >= header.log_offset + header.log_length;
        if !whole || !end.is_some_and(apart) {
            return Err(Error::corrupt(format!(
                "the log changes {len:#x} bytes at {offset:#x}, which it may not"
            )));
        }
        Ok(self)
    }
}

/// The 4 KiB of a data descriptor.
fn restored(descriptor: &RawDescriptor, sector: &[u8]) -> Option<Box<[u8; PAGE as usize]>> {
    let raw = RawDataSector::ref_from_bytes(sector).ok()?;
    let sequence = u64::from(raw.sequence_high.get()) << 32 | u64::from(raw.sequence_low.get());
    if raw.signature != DATA_SECTOR || sequence != descriptor.sequence.get() {
        return None;
    }
    let mut bytes: Box<[u8; PAGE as usize]> = Box::new(sector.try_into().ok()?);
    bytes.get_mut(..8)?.copy_from_slice(&descriptor.leading);
    bytes.get_mut(4092..)?.copy_from_slice(&descriptor.trailing);
    Some(bytes)
}

/// A descriptor with its 4 KiB in the form of the log.
pub fn stored(offset: u64, bytes: &[u8; PAGE as usize], sequence: u64) -> (RawDescriptor, Vec<u8>) {
    let [a, b, c, d, e, f, g, h, .., w, x, y, z] = *bytes;
    let descriptor = RawDescriptor {
        signature: DATA_DESCRIPTOR,
        trailing: [w, x, y, z],
        leading: [a, b, c, d, e, f, g, h],
        offset: offset.into(),
        sequence: sequence.into(),
    };
    let mut data = [0; 4084];
    data.copy_from_slice(&bytes[8..4092]);
    let sector = RawDataSector {
        signature: DATA_SECTOR,
        sequence_high: u32::try_from(sequence >> 32).unwrap_or(0).into(),
        data,
        sequence_low: u32::try_from(sequence & 0xffff_ffff).unwrap_or(0).into(),
    };
    (descriptor, sector.as_bytes().to_vec())
}

/// A file as it would be after the replay. It cannot be written.
pub struct Replayed {
    inner: StorageRef,
    replay: Replay,
}

impl fmt::Debug for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replayed({:?}, {} changes)", self.inner, self.replay.patches.len())
    }
}

impl Replayed {
    /// Shows `inner` with the changes of `replay`.
    pub fn new(inner: StorageRef, replay: Replay) -> Self {
        Self { inner, replay }
    }
}

impl ReadOnlyStorage for Replayed {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn len(&self) -> Result<u64> {
        Ok(self.inner.len()?.max(self.replay.last_offset))
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (len, end) = (buf.len() as u64, ReadOnlyStorage::len(self)?);
        let stop = offset.checked_add(len).filter(|stop| *stop <= end).ok_or_else(|| {
            Error::corrupt(format!(
                "cannot read {len} bytes at {offset:#x}: the file ends at {end:#x}"
            ))
            .at(ReadOnlyStorage::name(self))
        })?;
        read_padded(self.inner.as_ref(), offset, buf)?;
        for patch in &self.replay.patches {
            let (start, len) = patch.range();
            let (from, to) = (start.max(offset), (start + len).min(stop));
            if from >= to {
                continue;
            }
            // All differences are below the buffer's length, or the page's.
            let (Some(part), source) = (
                buf.get_mut((from - offset) as usize..(to - offset) as usize),
                (from - start) as usize..(to - start).min(PAGE) as usize,
            ) else {
                continue;
            };
            match patch {
                Patch::Zero { .. } => part.fill(0),
                Patch::Data { bytes, .. } => part.copy_from_slice(bytes.get(source).unwrap_or_default()),
            }
        }
        Ok(())
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        let rest = ReadOnlyStorage::len(self)?
            .checked_sub(offset)
            .filter(|rest| *rest > 0 && len > 0);
        let len = rest.map(|rest| rest.min(len));
        len.map(|len| StorageExtent { len, data: true })
            .ok_or_else(|| Error::corrupt(format!("{offset:#x} lies past the end of the file")))
    }
    fn allocated(&self) -> Result<u64> {
        self.inner.allocated()
    }
    fn identity(&self) -> Option<FileId> {
        self.inner.identity()
    }
    fn why_read_only(&self) -> &'static str {
        "the image is open for reading, with its log replayed in memory"
    }
}
