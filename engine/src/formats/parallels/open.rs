//! An open image.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};

use zerocopy::IntoBytes;

use super::layout::{self, EMPTY, HEADER_LEN, Header};
use super::map::{Bat, Space};
use crate::formats::common::{MAX_UNIT, exclusive, lock, read_table, shared};
use crate::image::{
    BackingReference, Below, Bitmaps, BulkWrite, CheckReport, Extent, ImageInfo, Placement, Repair, Resize, Scratch,
};
use crate::storage::read_padded;
use crate::{Control, Error, Image, Limits, OpenEnv, Result, StorageRef};

/// An open layer.
pub(super) struct ParallelsImage {
    pub(super) file: StorageRef,
    header: RwLock<Header>,
    pub(super) bat: RwLock<Bat>,
    pub(super) space: Mutex<Space>,
    /// End of the used file, for readers.
    end: AtomicU64,
    pub(super) bitmaps: super::bitmaps::Extension,
    /// What growing must stay within.
    pub(super) limits: Limits,
}

impl ParallelsImage {
    pub(super) fn open(file: StorageRef, env: &OpenEnv<'_>) -> Result<Self> {
        let len = file.len()?;
        let mut bytes = [0; HEADER_LEN];
        read_padded(file.as_ref(), 0, &mut bytes)?;
        let there = usize::try_from(len).unwrap_or(usize::MAX).min(HEADER_LEN);
        let mut header = layout::check(bytes.get(..there).unwrap_or_default(), len)?;
        let bat_bytes = u64::from(header.raw.bat_entries.get()) * 4;
        let raw = read_table(file.as_ref(), "the BAT", HEADER_LEN as u64, bat_bytes, env.limits)?;
        let entry = |b: &[u8]| b.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b));
        let entries: Vec<u32> = raw.chunks_exact(4).map(entry).collect();
        header.mind_clusters(&entries, len);
        let image = Self {
            bitmaps: super::bitmaps::Extension::read(&file, &header, env)?,
            file,
            header: RwLock::new(header),
            bat: RwLock::new(Bat {
                entries,
                dirty: BTreeSet::new(),
            }),
            space: Mutex::new(Space {
                end: len,
                ..Space::default()
            }),
            end: len.into(),
            limits: env.limits.clone(),
        };
        if env.writable && !env.for_check {
            image.mend_harmless()?;
        }
        Ok(image)
    }

    /// As QEMU, repairs an image that was not closed or has a wrong data offset; but not where that would drop clusters.
    fn mend_harmless(&self) -> Result<()> {
        let (header, end) = (self.header(), self.end());
        for (cluster, entry) in shared(&self.bat).entries.iter().enumerate() {
            self.place_of(&header, *entry, end).map_err(|e| {
                let what = format!(
                    "cluster {cluster} is not in the file ({}); check can repair it",
                    e.what()
                );
                Error::corrupt(what).at(self.file.name())
            })?;
        }
        if let Some((a, b)) = self.clusters_that_meet(&header).first() {
            let what = format!(
                "clusters {} and {} share bytes of the file at {:#x} and {:#x}; check can repair it",
                a.cluster, b.cluster, a.at, b.at
            );
            return Err(Error::corrupt(what).at(self.file.name()));
        }
        if header.in_use() || header.data_off_is_wrong {
            self.check(Repair::All, &Control::default())?;
        }
        Ok(())
    }

    pub(super) fn header(&self) -> Header {
        *shared(&self.header)
    }
    pub(super) fn cluster(&self) -> u64 {
        shared(&self.header).cluster
    }
    pub(super) fn size(&self) -> u64 {
        shared(&self.header).size
    }
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }
    pub(super) fn set_end(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// Changes the header: one write inside one sector, stable when this returns.
    pub(super) fn change_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut header = exclusive(&self.header);
        let mut new = *header;
        change(&mut new);
        self.file.write_at(0, new.raw.as_bytes())?;
        self.file.flush()?;
        *header = new;
        Ok(())
    }

    /// With the first change the bitmaps of the format extension stop being true, and the image being empty: both are dropped before it.
    pub(super) fn before_change(&self) -> Result<()> {
        let raw = shared(&self.header).raw;
        if raw.ext_off.get() == 0 && raw.flags.get() & EMPTY == 0 {
            return Ok(());
        }
        self.change_header(|header| {
            header.raw.ext_off = 0.into();
            header.raw.flags = (raw.flags.get() & !EMPTY).into();
        })
    }
}

impl Image for ParallelsImage {
    fn format(&self) -> &'static str {
        "parallels"
    }
    fn virtual_size(&self) -> u64 {
        self.size()
    }
    fn backing(&self) -> Option<BackingReference> {
        None
    }
    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo::default())
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.file.clone()]
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        self.extent_at(offset, len)
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_range(offset, buf)
    }
    fn write(&self, offset: u64, buf: &[u8], below: &dyn Below) -> Result<()> {
        self.write_range(offset, buf, below)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.zero_range(offset, len, unmap, below)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.discard_range(offset, len)
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        (self.cluster() <= MAX_UNIT).then_some(self)
    }
    fn resumable(&self) -> bool {
        true
    }
    fn flush(&self) -> Result<()> {
        self.write_out()
    }
    fn close(&self) -> Result<()> {
        self.write_out()?;
        super::check::cut_free_end(self)
    }
    fn resize(&self, to: &Resize) -> Result<()> {
        super::resize::resize(self, to)
    }
    fn check(&self, repair: Repair, control: &Control) -> Result<CheckReport> {
        super::check::check(self, repair, control)
    }
    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        Some(&self.bitmaps)
    }
}

impl BulkWrite for ParallelsImage {
    fn unit(&self) -> u64 {
        self.cluster()
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
        self.place_new(offset, len)
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.store_placed(placement, bytes)
    }
}

impl ParallelsImage {
    /// Forgets what is held in memory about free space, after a repair or a move changed it.
    pub(super) fn restart_space(&self, end: u64) {
        *lock(&self.space) = Space {
            end,
            ..Space::default()
        };
        self.set_end(end);
    }

    /// The error for a change of the virtual size that the header cannot say.
    pub(super) fn too_large(&self, size: u64) -> Error {
        Error::invalid(format!(
            "a Parallels image with clusters of {} bytes cannot have {size} bytes",
            self.cluster()
        ))
    }
}
