//! Writing the first cluster: header, extensions, backing file name, always together in one write.

use super::image::{Qcow2, Shared};
use super::layout::extensions::ExtensionKind;
use super::layout::header::{MAX_BACKING_NAME, WRITTEN_LEN};
use super::layout::{Autoclear, Extensions, Header, Incompatible};
use super::writer::Writer;
use crate::env::BackingReference;
use crate::{Error, Result};

/// The bytes of the first cluster; `header` gets the place of the backing file name and its own length.
///
/// # Errors
/// `InvalidArgument` when it does not fit into one cluster.
pub(super) fn compose(
    header: &mut Header,
    extensions: &mut Extensions,
    backing: Option<&BackingReference>,
) -> Result<Vec<u8>> {
    let size = 1usize << header.cluster_bits;
    let name = backing.map_or("", |b| b.name.as_str());
    if name.len() > MAX_BACKING_NAME as usize {
        return Err(Error::invalid(format!(
            "the backing file name has {} bytes; {MAX_BACKING_NAME} are possible",
            name.len()
        )));
    }
    header.header_length = if header.version >= 3 {
        (WRITTEN_LEN + header.unknown.len()) as u32
    } else {
        super::layout::header::V2_LEN as u32
    };
    let mut tail = extensions.encode();
    if header.header_length as usize + tail.len() + name.len() > size {
        // The names of features are the one thing that nobody misses.
        extensions.replace(ExtensionKind::FEATURE_NAMES, None);
        tail = extensions.encode();
    }
    let end = header.header_length as usize + tail.len();
    (header.backing_offset, header.backing_size) = if name.is_empty() {
        (0, 0)
    } else {
        (end as u64, name.len() as u32)
    };
    let mut bytes = header.encode();
    bytes.extend_from_slice(&tail);
    bytes.extend_from_slice(name.as_bytes());
    if bytes.len() > size {
        return Err(Error::invalid(format!(
            "the header of {} bytes does not fit into a cluster of {size}",
            bytes.len()
        )));
    }
    bytes.resize(bytes.len().next_multiple_of(512).min(size), 0);
    Ok(bytes)
}

impl Qcow2 {
    /// Changes header, extensions or backing name: in memory first, and there only when the write succeeded.
    pub fn change_header(&self, writer: &Writer, change: impl FnOnce(&mut Shared)) -> Result<()> {
        let mut shared = self.write_shared();
        let before = (shared.header.clone(), shared.extensions.clone(), shared.backing.clone());
        change(&mut shared);
        let shared = &mut *shared;
        let (at, clusters) = writer.refcounts.table_place();
        shared.header.reftable_offset = at;
        shared.header.reftable_clusters = u32::try_from(clusters).unwrap_or(u32::MAX);
        let written = compose(&mut shared.header, &mut shared.extensions, shared.backing.as_ref())
            .and_then(|bytes| self.host.file.write_at(0, &bytes));
        if written.is_err() {
            (shared.header, shared.extensions, shared.backing) = before;
            // A part of the new one may be in the file. The first error is the one to tell.
            let _ = compose(&mut shared.header, &mut shared.extensions, shared.backing.as_ref())
                .and_then(|bytes| self.host.file.write_at(0, &bytes));
        }
        written
    }

    /// Before guest data changes.
    ///
    /// # Errors
    /// As of [`Self::prepare_metadata`]; `LimitExceeded` when the bitmaps that record writes are too large.
    pub fn prepare(&self, writer: &mut Writer) -> Result<()> {
        self.prepare_metadata(writer)?;
        self.hold_recording_bitmaps(writer)
    }

    /// Before the first change of an opened image.
    ///
    /// # Errors
    /// `Corrupt` for an image whose metadata overlaps: writing could destroy more.
    pub fn prepare_metadata(&self, writer: &mut Writer) -> Result<()> {
        if writer.prepared {
            return Ok(());
        }
        self.refuse_untrusted()?;
        self.refuse_double_use(writer)?;
        self.drop_stale_features(writer)?;
        writer.prepared = true;
        Ok(())
    }

    /// # Errors
    /// `Corrupt` for an image that is marked so, whose metadata overlaps, or whose snapshots are not all known.
    pub fn refuse_untrusted(&self) -> Result<()> {
        if self.host.is_damaged() || self.read_shared().header.incompatible.has(Incompatible::CORRUPT) {
            return Err(Error::corrupt(
                "the image is marked corrupt and cannot be written before a repair",
            ));
        }
        if let Some(damage) = &self.read_shared().snapshot_damage {
            return Err(damage.refusal());
        }
        self.read_metadata().refuse_conflicts()
    }

    /// Data that features unknown here keep in the image goes stale with the first write: their bits go.
    pub fn drop_stale_features(&self, writer: &Writer) -> Result<()> {
        let stale = self.read_shared().header.autoclear & !Autoclear::KNOWN;
        if stale == 0 {
            return Ok(());
        }
        self.change_header(writer, |s| s.header.autoclear &= !stale)?;
        self.host.flush()
    }

    /// Flushes everything and leaves the image clean.
    pub fn finish(&self) -> Result<()> {
        let mut writer = self.lock_writer()?;
        self.write_back(&mut writer)?;
        self.host.flush()?;
        self.save_bitmaps(&mut writer)?;
        self.host.flush()
    }

    /// Marks the image corrupt, so that nobody writes to it before a repair. Version 2 has no such mark.
    fn mark_corrupt(&self, writer: &Writer) -> Result<()> {
        let header = self.read_shared().header.clone();
        if header.version < 3 || header.incompatible.has(Incompatible::CORRUPT) {
            return Ok(());
        }
        self.change_header(writer, |s| s.header.incompatible.0 |= Incompatible::CORRUPT)?;
        self.host.flush()
    }

    /// What a change of guest data came to. When it met a contradiction in the metadata, the image is marked corrupt.
    pub fn settle<T>(&self, writer: &mut Writer, done: Result<T>) -> Result<T> {
        if done.is_err() && self.host.is_damaged() {
            writer.prepared = false;
            // The first error is the one to tell.
            let _ = self.mark_corrupt(writer);
        }
        done
    }
}
