//! An open volume: reading and writing through the cipher.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use crate::crypto::SectorCipher;
use crate::crypto::luks::{EraseKeys, KeyEnv, LuksHeader, LuksSlot, NewKey, VolumeLayout, describe};
use crate::image::{
    BackingReference, Below, BulkWrite, CheckReport, Extent, ExtentKind, HostPlace, ImageInfo, KeySlots, Placement,
    Preallocation, Repair, Resize, Scratch,
};
use crate::{Control, Error, ErrorKind, Image, Result, StorageRef};

/// Bytes that are read and decrypted, or encrypted and written, at a time: what stays in a processor's own cache in between.
const PIECE: usize = 128 << 10;

pub(super) struct LuksImage {
    file: StorageRef,
    /// The file with the header, where it is not `file`.
    detached: Option<StorageRef>,
    header: RwLock<LuksHeader>,
    cipher: Option<SectorCipher>,
    layout: VolumeLayout,
    size: AtomicU64,
    /// Held while a sector is read, changed in part and written back.
    partial: Mutex<()>,
}

impl LuksImage {
    pub(super) fn new(
        file: StorageRef,
        detached: Option<StorageRef>,
        header: LuksHeader,
        cipher: Option<SectorCipher>,
        layout: VolumeLayout,
        size: u64,
    ) -> Self {
        let header = RwLock::new(header);
        Self {
            file,
            detached,
            header,
            cipher,
            layout,
            size: size.into(),
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

    fn iv(&self, offset: u64) -> u64 {
        self.layout.iv_offset.wrapping_add(offset)
    }

    fn sector(&self) -> u64 {
        u64::from(self.layout.sector_size)
    }

    /// Bytes from `offset` to the end of its sector or to `len`; 0 when `offset` begins a sector that `len` fills.
    fn partial_len(&self, offset: u64, len: usize) -> usize {
        let inside = offset % self.sector();
        let to_end = (self.sector() - inside) as usize;
        if inside == 0 && len >= to_end {
            0
        } else {
            to_end.min(len)
        }
    }

    fn read_sector(&self, cipher: &SectorCipher, start: u64) -> Result<Vec<u8>> {
        let mut sector = vec![0; self.sector() as usize];
        self.file.read_at(self.host(start), &mut sector)?;
        cipher.decrypt(self.iv(start), &mut sector)?;
        Ok(sector)
    }

    fn read_sectors(&self, cipher: &SectorCipher, mut offset: u64, buf: &mut [u8]) -> Result<()> {
        for piece in buf.chunks_mut(PIECE) {
            self.file.read_at(self.host(offset), piece)?;
            cipher.decrypt(self.iv(offset), piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Cuts a range into sectors touched in part, and runs of whole ones.
    fn parts(&self, mut offset: u64, mut len: usize) -> impl Iterator<Item = (u64, usize, bool)> + use<> {
        let sector = self.sector();
        let mut cuts = Vec::with_capacity(3);
        while len > 0 {
            let partial = self.partial_len(offset, len);
            let whole = len - len % sector as usize;
            let take = if partial > 0 { partial } else { whole };
            cuts.push((offset, take, partial > 0));
            offset += take as u64;
            len -= take;
        }
        cuts.into_iter()
    }

    fn write_sector_part(&self, cipher: &SectorCipher, offset: u64, bytes: &[u8]) -> Result<()> {
        let _alone = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = offset % self.sector();
        let start = offset - inside;
        let mut sector = self.read_sector(cipher, start)?;
        sector
            .iter_mut()
            .skip(inside as usize)
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
        cipher.encrypt(self.iv(start), &mut sector)?;
        self.file.write_at(self.host(start), &sector)
    }

    fn write_sectors(&self, cipher: &SectorCipher, mut offset: u64, bytes: &[u8]) -> Result<()> {
        let mut piece = Vec::with_capacity(bytes.len().min(PIECE));
        for part in bytes.chunks(PIECE) {
            piece.clear();
            piece.extend_from_slice(part);
            cipher.encrypt(self.iv(offset), &mut piece)?;
            self.file.write_at(self.host(offset), &piece)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn write_bytes(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inside(offset, buf.len() as u64)?;
        let cipher = self.cipher()?;
        let mut rest = buf;
        for (at, len, partial) in self.parts(offset, buf.len()) {
            let (now, later) = rest.split_at_checked(len).unwrap_or((rest, &[]));
            match partial {
                true => self.write_sector_part(cipher, at, now)?,
                false => self.write_sectors(cipher, at, now)?,
            }
            rest = later;
        }
        Ok(())
    }

    /// Writes encrypted zeroes.
    fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> Result<()> {
        let zeroes = vec![0; usize::try_from(len).unwrap_or(PIECE).min(PIECE)];
        while len > 0 {
            let now = zeroes
                .get(..usize::try_from(len).unwrap_or(PIECE).min(PIECE))
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
            specific: Some(specific),
            ..ImageInfo::default()
        })
    }
    fn storages(&self) -> Vec<StorageRef> {
        std::iter::once(&self.file).chain(&self.detached).cloned().collect()
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
        let cipher = self.cipher()?;
        let parts = self.parts(offset, buf.len());
        let mut rest = buf;
        for (at, len, partial) in parts {
            let (now, later) = rest.split_at_mut(len);
            if partial {
                let inside = at % self.sector();
                let sector = self.read_sector(cipher, at - inside)?;
                now.iter_mut()
                    .zip(sector.iter().skip(inside as usize))
                    .for_each(|(to, from)| *to = *from);
            } else {
                self.read_sectors(cipher, at, now)?;
            }
            rest = later;
        }
        Ok(())
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
        let len = self.layout.payload_offset.checked_add(to.virtual_size);
        self.file
            .set_len(len.ok_or_else(|| Error::limit("the virtual size is too large"))?)?;
        match to.virtual_size.checked_sub(now) {
            Some(more) => self.grow(to, now, more),
            None => {
                self.size.store(to.virtual_size, Ordering::Release);
                Ok(())
            }
        }
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
