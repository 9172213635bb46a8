//! An open volume: reading and writing through the cipher.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use crate::crypto::luks::{EraseKeys, KeyEnv, KeyWork, LuksHeader, LuksSlot, NewKey, VolumeLayout, describe};
use crate::crypto::{EncryptedBytes, SectorCipher};
use crate::image::{
    BackingReference, Below, BulkWrite, CheckReport, Extent, ExtentKind, HostPlace, ImageInfo, KeySlots, Placement,
    Preallocation, Repair, Resize, Scratch,
};
use crate::storage::read_padded;
use crate::{Control, Error, ErrorKind, Image, Result, StorageRef};

/// Zeroes that are written at a time.
const ZEROES: usize = 128 << 10;

pub(super) struct LuksImage {
    file: StorageRef,
    /// The file with the header, where it is not `file`.
    detached: Option<StorageRef>,
    header: RwLock<LuksHeader>,
    cipher: Option<SectorCipher>,
    layout: VolumeLayout,
    size: AtomicU64,
    /// Bytes of data that stood in the file in whole sectors when it was opened: what lies behind may end inside a sector.
    whole: u64,
    /// Held while a sector is read, changed in part and written back.
    partial: Mutex<()>,
}

/// How much data an image has.
pub(super) struct DataSize {
    /// Bytes that the guest sees.
    pub(super) bytes: u64,
    /// Bytes of them that stand in the file in whole sectors.
    pub(super) whole: u64,
}

impl LuksImage {
    pub(super) fn new(
        file: StorageRef,
        detached: Option<StorageRef>,
        header: LuksHeader,
        cipher: Option<SectorCipher>,
        layout: VolumeLayout,
        size: DataSize,
    ) -> Self {
        let header = RwLock::new(header);
        Self {
            file,
            detached,
            header,
            cipher,
            layout,
            size: size.bytes.into(),
            whole: size.whole,
            partial: Mutex::new(()),
        }
    }

    fn cipher(&self) -> Result<&SectorCipher> {
        let locked = || Error::new(ErrorKind::WrongKey, "the image was opened without its key").at(self.file.name());
        self.cipher.as_ref().ok_or_else(locked)
    }

    fn inside(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.virtual_size();
        if offset.checked_add(len).is_none_or(|e| e > end) {
            let text = format!("{len} bytes at {offset:#x} end past the virtual size {end}");
            return Err(Error::invalid(text).at(self.file.name()));
        }
        Ok(())
    }

    fn host(&self, offset: u64) -> u64 {
        self.layout.payload_offset + offset
    }

    fn sector(&self) -> u64 {
        u64::from(self.layout.sector_size)
    }

    /// The guest's bytes, by their guest offsets.
    fn decrypted<T>(&self, offset: u64, work: impl FnOnce(&EncryptedBytes<'_>, u64) -> Result<T>) -> Result<T> {
        let io = EncryptedBytes {
            cipher: self.cipher()?,
            read: &|at, buf| self.read_stored(at, buf),
            write: &|at, bytes| self.file.write_at(self.host(at), bytes),
        };
        work(&io, self.layout.iv_offset.wrapping_add(offset))
    }

    /// Stored bytes; zeroes, as QEMU has it, for what is missing of a last sector.
    fn read_stored(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if at + buf.len() as u64 > self.whole {
            return read_padded(self.file.as_ref(), self.host(at), buf);
        }
        self.file.read_at(self.host(at), buf)
    }

    fn write_bytes(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inside(offset, buf.len() as u64)?;
        self.decrypted(offset, |io, position| {
            let partial = io.is_partial(offset, buf.len());
            let _alone = partial.then(|| self.partial.lock().unwrap_or_else(PoisonError::into_inner));
            io.store(position, offset, buf)
        })
    }

    /// Writes encrypted zeroes.
    fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> Result<()> {
        let zeroes = vec![0; usize::try_from(len).unwrap_or(ZEROES).min(ZEROES)];
        while len > 0 {
            let now = zeroes
                .get(..usize::try_from(len).unwrap_or(ZEROES).min(ZEROES))
                .unwrap_or(&zeroes);
            self.write_bytes(offset, now)?;
            offset += now.len() as u64;
            len -= now.len() as u64;
        }
        Ok(())
    }

    fn header(&self) -> std::sync::RwLockWriteGuard<'_, LuksHeader> {
        self.header.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn grow(&self, to: &Resize, now: u64, more: u64) -> Result<()> {
        if to.preallocation == Preallocation::Falloc {
            self.file.allocate(self.host(now), more)?;
        }
        self.size.store(to.virtual_size, Ordering::Release);
        if to.preallocation == Preallocation::Full {
            self.write_zero_bytes(now, more)?;
        }
        Ok(())
    }
}

impl Image for LuksImage {
    fn format(&self) -> &'static str {
        "luks"
    }
    fn virtual_size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }
    fn backing(&self) -> Option<BackingReference> {
        None
    }
    fn info(&self) -> Result<ImageInfo> {
        let header = self.header.read().unwrap_or_else(PoisonError::into_inner);
        let specific = describe(&header, &self.layout, self.detached.is_some());
        Ok(ImageInfo {
            encrypted: true,
            dirty: Some(false),
            specific: Some(specific),
            ..ImageInfo::default()
        })
    }
    fn storages(&self) -> Vec<StorageRef> {
        std::iter::once(&self.file).chain(&self.detached).cloned().collect()
    }
    fn child_name(&self, storage: usize) -> String {
        let name = if storage == 0 { "file" } else { "header" };
        name.to_owned()
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        self.inside(offset, len)?;
        // No place: what stands there are not the guest's bytes, and QEMU names none either.
        Ok(Extent {
            len,
            kind: ExtentKind::Data {
                at: None,
                direct: false,
            },
        })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inside(offset, buf.len() as u64)?;
        self.decrypted(offset, |io, position| io.load(position, offset, buf))
    }
    fn write(&self, offset: u64, buf: &[u8], _below: &dyn Below) -> Result<()> {
        self.write_bytes(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool, _below: &dyn Below) -> Result<()> {
        self.inside(offset, len)?;
        self.write_zero_bytes(offset, len)
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        Some(self)
    }
    fn resumable(&self) -> bool {
        true
    }
    fn flush(&self) -> Result<()> {
        self.file.flush()?;
        self.detached.as_ref().map_or(Ok(()), |header| header.flush())
    }
    fn resize(&self, to: &Resize) -> Result<()> {
        let now = self.virtual_size();
        if self.layout.payload_len.is_some() {
            return Err(Error::unsupported("the header fixes the size of the data").at(self.file.name()));
        }
        if to.virtual_size < now && !to.shrink {
            let text = format!(
                "shrinking from {now} to {} bytes loses data; allow it explicitly",
                to.virtual_size
            );
            return Err(Error::invalid(text).at(self.file.name()));
        }
        if !to.virtual_size.is_multiple_of(self.sector()) {
            let (size, sector) = (to.virtual_size, self.sector());
            return Err(Error::invalid(format!(
                "the size {size} is no multiple of the sector size {sector}"
            )));
        }
        if to.preallocation == Preallocation::Metadata {
            return Err(Error::unsupported("unsupported preallocation mode: metadata"));
        }
        let before = self.file.len()?;
        let len = self.layout.payload_offset.checked_add(to.virtual_size);
        self.file
            .set_len(len.ok_or_else(|| Error::limit("the virtual size is too large"))?)?;
        if let Some(more) = to.virtual_size.checked_sub(now) {
            self.grow(to, now, more).inspect_err(|_| {
                // The first error is the one to tell.
                self.size.store(now, Ordering::Release);
                let _ = self.file.set_len(before);
            })?;
        }
        self.size.store(to.virtual_size, Ordering::Release);
        Ok(())
    }
    fn check(&self, repair: Repair, _control: &Control) -> Result<CheckReport> {
        if repair != Repair::No {
            return Err(self.cannot("repair"));
        }
        let header = self.header.read().unwrap_or_else(PoisonError::into_inner);
        super::check::check(&header, &self.layout, &self.file)
    }
    fn key_slots(&self) -> Option<&dyn KeySlots> {
        Some(self)
    }
}

impl BulkWrite for LuksImage {
    fn unit(&self) -> u64 {
        4096
    }
    fn encodes(&self) -> bool {
        false
    }
    fn overwrites(&self) -> bool {
        true
    }
    fn encode(&self, _data: &[u8], _scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    fn place(&self, offset: u64, len: u64, _encoded: Option<u64>) -> Result<Placement> {
        self.inside(offset, len)?;
        let at = HostPlace {
            file: 0,
            offset: self.host(offset),
        };
        Ok(Placement {
            guest: offset,
            at,
            len,
            encoded: false,
        })
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.write_bytes(placement.guest, bytes)
    }
}

impl KeySlots for LuksImage {
    fn list(&self) -> Result<Vec<LuksSlot>> {
        Ok(self.header.read().unwrap_or_else(PoisonError::into_inner).info().slots)
    }
    fn test(&self, passphrase: &[u8], slot: Option<u32>, work: &KeyWork<'_>) -> Result<u32> {
        let header = self.header.read().unwrap_or_else(PoisonError::into_inner);
        header.test_key(passphrase, slot, work)
    }
    fn add(&self, unlock: &[u8], new: &NewKey<'_>, env: &KeyEnv<'_>) -> Result<u32> {
        self.header().add_key(unlock, new, env)
    }
    fn change(&self, old: &[u8], new: &NewKey<'_>, env: &KeyEnv<'_>) -> Result<u32> {
        self.header().change_key(old, new, env)
    }
    fn erase(&self, which: EraseKeys<'_>, force: bool, env: &KeyEnv<'_>) -> Result<Vec<u32>> {
        self.header().erase_keys(which, force, env)
    }
}
