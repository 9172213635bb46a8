//! Changes of the descriptor: content identity and layer below.

use std::sync::atomic::Ordering;

use super::descriptor::{Descriptor, NO_PARENT};
use super::image::{Body, DescriptorPlace, VmdkImage};
use crate::image::BackingReference;
use crate::storage::read_padded;
use crate::{Error, Image, Result};

impl VmdkImage {
    /// Before the first change of a session: gives the content a new CID. It follows from the old one and from what is written, since
    /// the engine has no source of chance when it opens an image.
    pub fn change_cid(&self, offset: u64, seed: &[u8], sync: bool) -> Result<()> {
        if self.cid_changed.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut guard = self.descriptor();
        if self.cid_changed.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some((descriptor, place)) = guard.as_mut() {
            let seed = seed.get(..seed.len().min(4096)).unwrap_or_default();
            descriptor.set_cid(cid_after(descriptor.cid, &[&offset.to_le_bytes(), seed]));
            self.store_descriptor(descriptor, *place)?;
            if sync {
                self.main()?.flush()?;
            }
        }
        self.cid_changed.store(true, Ordering::Release);
        Ok(())
    }

    /// Before a commit into this layer: the CID that the overlay recorded.
    pub fn begin_commit(&self) -> Result<()> {
        let mut guard = self.descriptor();
        if let Some((descriptor, place)) = guard.as_mut() {
            descriptor.set_cid(cid_of_commit(descriptor.cid));
            self.store_descriptor(descriptor, *place)?;
            self.main()?.flush()?;
        }
        self.cid_changed.store(true, Ordering::Release);
        Ok(())
    }

    /// Before a commit from this layer: the CID that the layer below will have.
    pub fn record_parent(&self, cid: u32) -> Result<()> {
        let mut guard = self.descriptor();
        if let Some((descriptor, place)) = guard.as_mut().filter(|(d, _)| d.parent_cid != NO_PARENT) {
            descriptor.set_parent_cid(cid);
            self.store_descriptor(descriptor, *place)?;
            self.main()?.flush()?;
        }
        Ok(())
    }

    /// Writes the sectors of the descriptor that changed. A text that became shorter ends in empty lines: one write does it.
    pub fn store_descriptor(&self, descriptor: &Descriptor, place: DescriptorPlace) -> Result<()> {
        let main = self.main()?;
        let mut new = descriptor.text();
        let (old_len, filler) = match place.room {
            Some(room) => (room, 0),
            None => (main.len()?, b'\n'),
        };
        let old_len = usize::try_from(old_len).map_err(|_| Error::limit("a descriptor past the address space"))?;
        if place.room.is_some() && new.len() >= old_len {
            return Err(Error::unsupported(format!(
                "the descriptor has room for {old_len} bytes only"
            )));
        }
        if new.len() < old_len {
            new.resize(old_len, filler);
        }
        let mut old = vec![0; new.len()];
        read_padded(main.as_ref(), place.offset, &mut old)?;
        let same = |(a, b): &(&[u8], &[u8])| a == b;
        let before = new.chunks(512).zip(old.chunks(512)).take_while(same).count() * 512;
        if before >= new.len() {
            return Ok(());
        }
        let after = new.rchunks(1).zip(old.rchunks(1)).take_while(same).count();
        let part = new.get(before..new.len() - after).unwrap_or_default();
        main.write_at(place.offset + before as u64, part)
    }

    /// Names another layer below: its file and the CID of its content. Everything written before is stable first.
    pub fn change_parent(&self, backing: Option<&BackingReference>, below: Option<&dyn Image>) -> Result<()> {
        if self.parts.iter().any(|p| !matches!(p.body, Body::Sparse { .. })) {
            return Err(Error::unsupported("Flat image can't have backing file"));
        }
        self.flush_all()?;
        let parent = match (backing, below) {
            (None, _) => None,
            (Some(backing), Some(below)) => Some((safe_name(&backing.name)?, cid_of(below)?)),
            (Some(_), None) => {
                return Err(Error::invalid(
                    "a VMDK records the CID of its backing file, so that must be open",
                ));
            }
        };
        let mut guard = self.descriptor();
        let Some((descriptor, place)) = guard.as_mut() else {
            return Err(Error::unsupported(
                "an extent without a descriptor cannot have a backing file",
            ));
        };
        if let Some((name, _)) = parent.filter(|(name, _)| !descriptor.can_name(name)) {
            let name = name.escape_debug();
            return Err(Error::unsupported(format!(
                "the name \"{name}\" cannot stand in a descriptor whose text is not UTF-8"
            )));
        }
        let mut changed = descriptor.clone();
        changed.set_parent(parent);
        self.store_descriptor(&changed, *place)?;
        *descriptor = changed;
        self.main()?.flush()
    }
}

/// The CID that a content gets when a commit changes it: known before, unlike those of other changes, so that the overlay can be told first. No
/// other overlay of the old content takes it for its base.
pub(super) fn cid_of_commit(cid: u32) -> u32 {
    cid_after(cid, &[b"commit"])
}

/// Another CID.
fn cid_after(cid: u32, seeds: &[&[u8]]) -> u32 {
    let mut hash = crc32fast::Hasher::new_with_initial(cid);
    seeds.iter().for_each(|seed| hash.update(seed));
    let next = hash.finalize();
    if [cid, u32::MAX, u32::MAX - 1, 0].contains(&next) {
        return cid.wrapping_add(1).clamp(1, u32::MAX - 2);
    }
    next
}

/// A name that can stand between quotes in a descriptor.
pub(super) fn safe_name(name: &str) -> Result<&str> {
    if name.is_empty() || name.contains(|c: char| c == '"' || c.is_control()) {
        let name = name.escape_debug();
        return Err(Error::invalid(format!(
            "the name \"{name}\" cannot stand in a VMDK descriptor"
        )));
    }
    Ok(name)
}

/// The CID of an open image.
pub(super) fn cid_of(image: &dyn Image) -> Result<u32> {
    let id = image.layer_id().filter(|_| image.format() == "vmdk");
    id.and_then(|id| u32::from_str_radix(&id, 16).ok())
        .ok_or_else(|| Error::invalid("backing_file must be a vmdk image"))
}
