//! The key slots of a LUKS1 header: finding the volume key, and putting it under another passphrase.

use zeroize::Zeroizing;

use super::header::{Header, Slot};
use super::layout::{ACTIVE, INACTIVE, SECTOR, SLOTS, STRIPES};
use crate::crypto::luks::wipe::{overwrite, overwrite_remains};
use crate::crypto::luks::{KeyEnv, KeyWork, UnlockedKey, same};
use crate::crypto::{SectorCipher, af_merge, af_split, pbkdf2};
use crate::storage::read_vec;
use crate::{Error, Result, Storage};

/// The volume key under a passphrase, for any slot.
pub(crate) struct SealedKey {
    iterations: u32,
    salt: [u8; 32],
    material: Zeroizing<Vec<u8>>,
}

impl Header {
    /// Tries a passphrase on the active slots in order, or on the given one alone; `None` when none opens.
    ///
    /// # Errors
    /// `Io` and `Corrupt` when key material cannot be read, `LimitExceeded` when all these slots cost too much, `Cancelled`.
    pub(crate) fn unlock(
        &self,
        storage: &dyn Storage,
        passphrase: &[u8],
        only: Option<usize>,
        work: &KeyWork<'_>,
    ) -> Result<Option<UnlockedKey>> {
        let mut effort = work.effort();
        for (number, slot) in self.slots.iter().enumerate() {
            let Some(iterations) = slot.iterations.filter(|_| only.is_none_or(|wanted| wanted == number)) else {
                continue;
            };
            effort.spend_iterations(iterations)?;
            effort.spend_iterations(self.key_digest_iterations())?;
            let key = self.slot_key(storage, number, slot, iterations, passphrase, work)?;
            if self.is_volume_key(&key, work)? {
                return Ok(Some(UnlockedKey {
                    key,
                    slot: number as u32,
                }));
            }
        }
        Ok(None)
    }

    fn slot_key(
        &self,
        storage: &dyn Storage,
        number: usize,
        slot: &Slot,
        iterations: u32,
        passphrase: &[u8],
        work: &KeyWork<'_>,
    ) -> Result<Zeroizing<Vec<u8>>> {
        let salt = self.raw.slots.get(number).map(|raw| raw.salt).unwrap_or_default();
        let cipher = self.slot_cipher(passphrase, &salt, iterations, work)?;
        let mut material = Zeroizing::new(read_vec(storage, slot.key_offset, self.material_len() as usize)?);
        cipher.decrypt(0, &mut material)?;
        let split = material.get(..self.split_len()).unwrap_or_default();
        af_merge(self.hash, split, STRIPES)
    }

    /// The cipher of a slot's key material: the volume's own, keyed from the passphrase, sectors counted from its start.
    fn slot_cipher(&self, passphrase: &[u8], salt: &[u8], iterations: u32, work: &KeyWork<'_>) -> Result<SectorCipher> {
        let mut derived = Zeroizing::new(vec![0; self.spec.key_len()]);
        pbkdf2(self.hash, passphrase, salt, iterations, work.cancelled, &mut derived)?;
        SectorCipher::new(self.spec, &derived, SECTOR as u32)
    }

    fn split_len(&self) -> usize {
        self.spec.key_len() * STRIPES as usize
    }

    fn digest(&self, key: &[u8], work: &KeyWork<'_>) -> Result<[u8; 20]> {
        let mut digest = [0; 20];
        let (salt, iterations) = (&self.raw.key_digest_salt, self.key_digest_iterations());
        pbkdf2(self.hash, key, salt, iterations, work.cancelled, &mut digest)?;
        Ok(digest)
    }

    fn is_volume_key(&self, key: &[u8], work: &KeyWork<'_>) -> Result<bool> {
        Ok(same(&self.digest(key, work)?, &self.raw.key_digest))
    }

    /// Records how to tell the volume key; nothing is written yet.
    pub(super) fn set_volume_key(&mut self, key: &[u8], iterations: u32, env: &KeyEnv<'_>) -> Result<()> {
        (env.random)(&mut self.raw.key_digest_salt);
        self.raw.key_digest_iterations = iterations.into();
        self.raw.key_digest = self.digest(key, &env.work)?;
        Ok(())
    }

    /// Puts the volume key under a passphrase. Nothing is written: this is the part that takes long and can be cancelled.
    pub(crate) fn seal(&self, key: &[u8], passphrase: &[u8], iterations: u32, env: &KeyEnv<'_>) -> Result<SealedKey> {
        let mut salt = [0; 32];
        (env.random)(&mut salt);
        let mut stripes = Zeroizing::new(vec![0; self.split_len().saturating_sub(key.len())]);
        (env.random)(&mut stripes);
        let mut material = Zeroizing::new(vec![0; self.material_len() as usize]);
        let split = af_split(self.hash, key, STRIPES, stripes)?;
        material.iter_mut().zip(split.iter()).for_each(|(to, from)| *to = *from);
        self.slot_cipher(passphrase, &salt, iterations, &env.work)?
            .encrypt(0, &mut material)?;
        Ok(SealedKey {
            iterations,
            salt,
            material,
        })
    }

    /// Puts a sealed key into a slot.
    ///
    /// The order is: the slot is inactive in the stored header, key material, flush, header with the slot active, flush.
    /// A crash before the end leaves the slot inactive and the others as they were.
    pub(crate) fn store_key(&mut self, storage: &dyn Storage, number: usize, sealed: &SealedKey) -> Result<()> {
        let slot = *self.slots.get(number).ok_or_else(|| no_slot(number))?;
        if slot.iterations.is_some() {
            self.set_slot(number, None, [0; 32]);
            self.write(storage)?;
        }
        storage.write_at(slot.key_offset, &sealed.material)?;
        storage.flush()?;
        self.set_slot(number, Some(sealed.iterations), sealed.salt);
        self.write(storage)
    }

    /// Puts a sealed key into a slot in place of a key that may be the only one: the new key is in the empty slot `spare` as well until it
    /// is stable.
    pub(crate) fn replace_key(
        &mut self,
        storage: &dyn Storage,
        number: usize,
        spare: usize,
        sealed: &SealedKey,
        random: &dyn Fn(&mut [u8]),
    ) -> Result<()> {
        self.store_key(storage, spare, sealed).inspect_err(|_| {
            // The first error is the one to tell.
            let _ = self.erase_slot(storage, spare, random);
        })?;
        // When this fails the spare slot may hold the only key: it stays.
        self.store_key(storage, number, sealed)?;
        self.erase_slot(storage, spare, random)
    }

    /// Empties a slot for good: first the header forgets it and its salt, then its key material is overwritten.
    pub(crate) fn erase_slot(
        &mut self,
        storage: &dyn Storage,
        number: usize,
        random: &dyn Fn(&mut [u8]),
    ) -> Result<()> {
        let slot = *self.slots.get(number).ok_or_else(|| no_slot(number))?;
        self.set_slot(number, None, [0; 32]);
        self.write(storage)?;
        overwrite(storage, self.material(&slot), random)
    }

    /// Ends erasures that were cut off: the header again, and garbage over the material of all empty slots.
    pub(crate) fn finish_erasure(&self, storage: &dyn Storage, random: &dyn Fn(&mut [u8])) -> Result<()> {
        self.write(storage)?;
        let mut empty = self.slots.iter().filter(|slot| slot.iterations.is_none());
        empty.try_for_each(|slot| overwrite_remains(storage, self.material(slot), random))
    }

    fn material(&self, slot: &Slot) -> (u64, u64) {
        (slot.key_offset, slot.key_offset + self.material_len())
    }

    fn set_slot(&mut self, number: usize, iterations: Option<u32>, salt: [u8; 32]) {
        if let (Some(slot), Some(raw)) = (self.slots.get_mut(number), self.raw.slots.get_mut(number)) {
            slot.iterations = iterations;
            raw.state = if iterations.is_some() {
                ACTIVE.into()
            } else {
                INACTIVE.into()
            };
            raw.iterations = iterations.unwrap_or(0).into();
            raw.salt = salt;
        }
    }

    /// Writes the header and makes it stable.
    pub(super) fn write(&self, storage: &dyn Storage) -> Result<()> {
        storage.write_at(0, self.bytes())?;
        storage.flush()
    }
}

fn no_slot(number: usize) -> Error {
    Error::invalid(format!(
        "there is no key slot {number}: LUKS1 has slots 0 to {}",
        SLOTS - 1
    ))
}
