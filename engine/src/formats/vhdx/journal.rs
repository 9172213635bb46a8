//! Writing: headers, and changes of metadata through the log.
//!
//! Order of writes. An entry with the new pages is written to the log and made stable; with the first one the header is made to
//! say that the log is in use; then the pages are written to their places and made stable. The next entry goes behind the last one, so that
//! there is a sound one at any time. Closing makes the header say that the log is empty. A crash leaves all pages of an entry old or,
//! after the replay, all new.

use zerocopy::IntoBytes;

use super::layout::{HEADERS, Header, PAGE, RawDescriptor, RawEntry, RawHeader, descriptors_in, seal};
use super::log::stored;
use crate::{Error, Result, Storage};

/// A page of metadata and its place.
pub type Page = (u64, Box<[u8; PAGE as usize]>);

/// The header that counts, and where it is.
#[derive(Debug, Clone, Copy)]
pub struct Headers {
    /// As stored.
    pub raw: RawHeader,
    /// Which of the two.
    pub slot: usize,
}

impl Headers {
    /// Writes a changed header over the one that does not count, which then counts.
    pub fn update(&mut self, storage: &dyn Storage, change: impl FnOnce(&mut RawHeader)) -> Result<()> {
        let mut raw = self.raw;
        change(&mut raw);
        raw.sequence = raw.sequence.get().wrapping_add(1).into();
        let slot = 1 - self.slot.min(1);
        let place = HEADERS.get(slot).copied().unwrap_or(HEADERS[0]);
        storage.write_at(place, &raw.encode())?;
        storage.flush()?;
        *self = Self { raw, slot };
        Ok(())
    }
}

/// The log of an image that is open for writing.
#[derive(Debug)]
pub struct Journal {
    /// The header.
    pub headers: Headers,
    offset: u64,
    length: u64,
    /// Where the next entry goes, from the start of the log.
    position: u64,
    sequence: u64,
    guid: [u8; 16],
    in_use: bool,
    /// The header that does not count still says that the log is in use.
    stale: bool,
}

impl Journal {
    /// For an image whose log is empty.
    pub fn new(headers: Headers, header: &Header) -> Self {
        Self {
            headers,
            offset: header.log_offset,
            length: header.log_length,
            position: 0,
            sequence: 0,
            guid: [0; 16],
            in_use: false,
            stale: false,
        }
    }

    /// Pages that fit in an entry of half the log: so many change as one.
    pub fn most(&self) -> usize {
        let pages = self.length / 2 / PAGE;
        let descriptors = (1..pages).find(|d| descriptors_in(*d) + d >= pages).unwrap_or(1);
        usize::try_from((pages - descriptors).min(descriptors_in(descriptors))).unwrap_or(1)
    }

    /// Changes pages. Each group that fits in one entry changes as one; groups in the order given.
    pub fn write(&mut self, storage: &dyn Storage, pages: &[Page], file_len: u64) -> Result<()> {
        for group in pages.chunks(self.most()) {
            self.log(storage, group, file_len)?;
            for (offset, bytes) in group {
                storage.write_at(*offset, bytes.as_slice())?;
            }
            storage.flush()?;
        }
        Ok(())
    }

    fn log(&mut self, storage: &dyn Storage, pages: &[Page], file_len: u64) -> Result<()> {
        if !self.in_use {
            self.guid = derived(&self.headers.raw, b"log");
        }
        self.sequence += 1;
        let mut entry = self.entry(pages, file_len)?;
        if self.position + entry.len() as u64 > self.length {
            self.position = 0;
        }
        let tail = u32::try_from(self.position).map_err(|_| Error::limit("the log is over 4 GiB"))?;
        if let Some(field) = entry.get_mut(12..16) {
            field.copy_from_slice(&tail.to_le_bytes());
        }
        seal(&mut entry);
        storage.write_at(self.offset + self.position, &entry)?;
        storage.flush()?;
        self.position += entry.len() as u64;
        if !self.in_use {
            let guid = self.guid;
            self.headers.update(storage, |raw| raw.log_guid = guid)?;
            self.in_use = true;
        }
        Ok(())
    }

    fn entry(&self, pages: &[Page], file_len: u64) -> Result<Vec<u8>> {
        let narrow = |n: usize| u32::try_from(n).map_err(|_| Error::limit("a log entry is over 4 GiB"));
        let (descriptors, sectors): (Vec<RawDescriptor>, Vec<_>) = pages
            .iter()
            .map(|(offset, bytes)| stored(*offset, bytes, self.sequence))
            .unzip();
        let head_len = (size_of::<RawEntry>() + size_of_val(descriptors.as_slice())).next_multiple_of(PAGE as usize);
        let head = RawEntry {
            signature: *b"loge",
            checksum: 0.into(),
            length: narrow(head_len + pages.len() * PAGE as usize)?.into(),
            tail: 0.into(),
            sequence: self.sequence.into(),
            descriptors: narrow(pages.len())?.into(),
            reserved: 0.into(),
            log_guid: self.guid,
            flushed_offset: file_len.into(),
            last_offset: file_len.into(),
        };
        let mut entry = head.as_bytes().to_vec();
        descriptors.iter().for_each(|d| entry.extend_from_slice(d.as_bytes()));
        entry.resize(head_len, 0);
        sectors.iter().for_each(|s| entry.extend_from_slice(s));
        Ok(entry)
    }

    /// Makes the header say that nothing is left to be done.
    pub fn close(&mut self, storage: &dyn Storage) -> Result<()> {
        if self.in_use {
            self.headers.update(storage, |raw| raw.log_guid = [0; 16])?;
            self.in_use = false;
            self.stale = true;
            self.position = 0;
            self.sequence = 0;
        }
        Ok(())
    }

    /// Makes both headers say so.
    pub fn settle(&mut self, storage: &dyn Storage) -> Result<()> {
        if self.stale {
            self.headers.update(storage, |_| ())?;
            self.stale = false;
        }
        Ok(())
    }
}

/// An id for a header's next state. The engine has no source of random numbers when it opens an image; what makes two ids differ are the
/// ids before, the number of the header and what is about to be written.
pub fn derived(raw: &RawHeader, what: &[u8]) -> [u8; 16] {
    use sha2::{Digest, Sha256};
    let mut sha = Sha256::new();
    sha.update(raw.file_write_guid);
    sha.update(raw.data_write_guid);
    sha.update(raw.sequence.as_bytes());
    sha.update(what);
    id_of(sha)
}

/// The data-write id that a content gets when a commit changes it: known before, unlike those of other changes, so that the disk above can be
/// told first. No other disk over the old content takes it for its base.
pub fn id_of_commit(data_write: uuid::Uuid) -> uuid::Uuid {
    use sha2::{Digest, Sha256};
    let sha = Sha256::new_with_prefix(b"commit").chain_update(data_write.to_bytes_le());
    uuid::Uuid::from_bytes_le(id_of(sha))
}

fn id_of(sha: sha2::Sha256) -> [u8; 16] {
    let mut bytes = [0; 16];
    let digest = sha2::Digest::finalize(sha);
    bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_bytes_le()
}
