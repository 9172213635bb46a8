//! An open image.

use std::sync::Mutex;

use serde_json::Map;
use zerocopy::IntoBytes;

use super::layout::{self, BACKING_FILE, BACKING_IS_RAW, HEADER_LEN, Header, NEED_CHECK};
use crate::formats::common::{MAX_UNIT, lock, text};
use crate::formats::two_level::{Codec, Shape, Slot, TwoLevel};
use crate::image::{
    BackingReference, Below, BulkWrite, CheckReport, Extent, ExtentKind, ImageInfo, Placement, Preallocation, Repair,
    Resize, Scratch,
};
use crate::storage::read_padded;
use crate::{Control, Error, Image, OpenEnv, Result, StorageRef};

/// L2 entries of QED: 0 is unallocated, 1 is zero, the rest are offsets.
pub(super) struct Entries;

impl Codec for Entries {
    fn decode(&self, entry: u64) -> Result<Slot> {
        Ok(match entry {
            0 => Slot::Unallocated,
            1 => Slot::Zero,
            at => Slot::Data(at),
        })
    }
    fn encode(&self, slot: Slot) -> Option<u64> {
        match slot {
            Slot::Unallocated => Some(0),
            Slot::Zero => Some(1),
            Slot::Data(at) => Some(at),
            Slot::Compressed { .. } => None,
        }
    }
    fn inflate(&self, _packed: &[u8], _out: &mut [u8]) -> Result<()> {
        Err(Error::unsupported("QED has no compressed clusters"))
    }
}

/// An open layer.
pub(super) struct QedImage {
    pub(super) map: TwoLevel<Entries>,
    pub(super) header: Mutex<Header>,
    backing: Mutex<Option<BackingReference>>,
}

impl QedImage {
    pub(super) fn open(file: StorageRef, env: &OpenEnv<'_>) -> Result<Self> {
        let len = file.len()?;
        let mut bytes = [0; HEADER_LEN];
        read_padded(file.as_ref(), 0, &mut bytes)?;
        let header = layout::check(
            bytes
                .get(..usize::try_from(len).unwrap_or(HEADER_LEN).min(HEADER_LEN))
                .unwrap_or(&bytes),
            len,
        )?;
        let shape = Shape {
            cluster: header.cluster,
            l2_entries: header.entries(),
            l1_offset: header.raw.l1_table_offset.get(),
            l1_entries: header.l1_entries(),
            first_free: header.header_bytes,
            little_endian: true,
            alignment: header.cluster,
            accepted_alignment: header.cluster,
            cache_bytes: env.limits.cache_bytes,
        };
        let backing = read_backing(&file, &header)?;
        let map = TwoLevel::open(file, Entries, shape, header.size, env.limits)?;
        let image = Self {
            map,
            header: Mutex::new(header),
            backing: Mutex::new(backing),
        };
        if env.writable {
            image.make_writable(env.for_check)?;
        }
        Ok(image)
    }

    /// Unknown autoclear features go, and an image that was not closed is repaired before anything is changed.
    fn make_writable(&self, for_check: bool) -> Result<()> {
        let stale = lock(&self.header).raw.autoclear_features.get() != 0;
        if stale {
            self.change_header(|header| header.raw.autoclear_features = 0.into())?;
        }
        if for_check || !lock(&self.header).has(NEED_CHECK) {
            return Ok(());
        }
        let report = self.check(Repair::All, &Control::default())?;
        if report.corruptions + report.check_errors > 0 {
            return Err(Error::corrupt(format!(
                "the image was not closed properly and has {} contradictions that cannot be mended",
                report.corruptions + report.check_errors
            )));
        }
        Ok(())
    }

    /// Changes the header's fixed part: one write inside one sector, stable when this returns.
    pub(super) fn change_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut header = lock(&self.header);
        let mut new = *header;
        change(&mut new);
        self.map.file().write_at(0, new.raw.as_bytes())?;
        self.map.file().flush()?;
        *header = new;
        Ok(())
    }
}

fn read_backing(file: &StorageRef, header: &Header) -> Result<Option<BackingReference>> {
    if !header.has(BACKING_FILE) {
        return Ok(None);
    }
    let len = usize::try_from(header.raw.backing_size.get()).unwrap_or(0);
    let name = crate::storage::read_vec(file.as_ref(), u64::from(header.raw.backing_offset.get()), len)?;
    Ok(Some(BackingReference {
        name: text(&name, "the backing file name")?,
        format: header.has(BACKING_IS_RAW).then(|| "raw".to_owned()),
    }))
}

impl Image for QedImage {
    fn format(&self) -> &'static str {
        "qed"
    }
    fn virtual_size(&self) -> u64 {
        self.map.size()
    }
    fn backing(&self) -> Option<BackingReference> {
        lock(&self.backing).clone()
    }
    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo {
            cluster_size: Some(self.map.cluster()),
            dirty: Some(lock(&self.header).has(NEED_CHECK)),
            specific: None::<Map<_, _>>,
            ..ImageInfo::default()
        })
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.map.file().clone()]
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        self.map.extent(offset, len)
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.map.read(offset, buf)
    }
    fn write(&self, offset: u64, buf: &[u8], below: &dyn Below) -> Result<()> {
        self.map.write(offset, buf, below)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.map.write_zeroes(offset, len, unmap, below)
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        (self.map.cluster() <= MAX_UNIT).then_some(self)
    }
    fn resumable(&self) -> bool {
        true
    }
    fn flush(&self) -> Result<()> {
        self.map.flush()
    }
    fn resize(&self, to: &Resize) -> Result<()> {
        if to.preallocation != Preallocation::Off {
            return Err(Error::unsupported("QED images cannot be preallocated"));
        }
        let size = to.virtual_size;
        if size < self.map.size() {
            return Err(Error::unsupported("shrinking QED images is not supported"));
        }
        let (max, entries) = {
            let header = lock(&self.header);
            (header.max_size(), header.entries())
        };
        if !size.is_multiple_of(512) || size > max {
            return Err(Error::invalid(format!(
                "QED image size must be a multiple of 512 and at most {max}, not {size}"
            )));
        }
        let old = self.map.size();
        // Tables that come into use do so whole.
        let covered = size.checked_next_multiple_of(self.map.cluster().saturating_mul(entries));
        let covered = covered.unwrap_or(max).min(max).max(size);
        self.map.grow(covered)?;
        let nothing = self.nothing_between(old, covered);
        self.map.grow(if nothing.is_ok() { size } else { old })?;
        nothing?;
        self.change_header(|header| {
            header.size = size;
            header.raw.image_size = size.into();
        })
    }
    fn set_backing(&self, backing: Option<&BackingReference>) -> Result<()> {
        let (mut raw, header_bytes) = {
            let header = lock(&self.header);
            (header.raw, header.header_bytes)
        };
        let name = super::create::name_backing(&mut raw, backing, header_bytes)?;
        // Header and name in one write: neither is ever seen without the other.
        self.map.file().write_at(0, &[raw.as_bytes(), &name].concat())?;
        self.map.file().flush()?;
        lock(&self.header).raw = raw;
        *lock(&self.backing) = backing.map(|b| BackingReference {
            name: b.name.clone(),
            format: b.format.clone().filter(|f| f == "raw"),
        });
        Ok(())
    }
    fn check(&self, repair: Repair, control: &Control) -> Result<CheckReport> {
        super::check::check(self, repair, control)
    }
}

impl QedImage {
    /// Tables may name clusters behind the end of the disk, which nobody checks: a larger disk would show them.
    fn nothing_between(&self, old: u64, new: u64) -> Result<()> {
        let mut at = old.next_multiple_of(self.map.cluster());
        while at < new {
            let extent = self.map.extent(at, new - at)?;
            if extent.kind != ExtentKind::Unallocated {
                return Err(Error::corrupt(format!(
                    "the tables have an entry for {at:#x}, behind the disk's end at {old:#x}; convert the image instead"
                )));
            }
            at += extent.len;
        }
        Ok(())
    }
}

impl BulkWrite for QedImage {
    fn unit(&self) -> u64 {
        self.map.cluster()
    }
    fn encodes(&self) -> bool {
        false
    }
    fn sparse_store(&self) -> bool {
        self.map.file().can_resize()
    }
    fn encode(&self, _data: &[u8], _scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    fn place(&self, offset: u64, len: u64, encoded: Option<u64>) -> Result<Placement> {
        if encoded.is_some() {
            return Err(self.cannot("compress"));
        }
        self.map.place(offset, len, None)
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.map.store(placement, bytes)
    }
}
