//! Adding, changing and erasing keys of either version.

use super::volume::{Form, LuksHeader};
use super::{KdfCost, KeyEnv, KeyWork, UnlockedKey, v1, v2};
use crate::{Error, Result};

/// A key to be added.
#[derive(Clone, Copy)]
pub struct NewKey<'a> {
    /// The passphrase.
    pub passphrase: &'a [u8],
    /// The slot to take; the first empty one when not given.
    pub slot: Option<u32>,
    /// Cost of guessing it.
    pub cost: KdfCost,
    /// Take the slot even if it holds a key.
    pub overwrite: bool,
}

/// Which keys to erase.
#[derive(Clone, Copy)]
pub enum EraseKeys<'a> {
    /// The one in this slot.
    Slot(u32),
    /// All that this passphrase opens.
    Matching(&'a [u8]),
    /// The one in this slot, if this passphrase opens it.
    SlotMatching(u32, &'a [u8]),
}

impl LuksHeader {
    /// Numbers of the slots whose key opens the data without being asked for by number.
    #[must_use]
    pub fn active_slots(&self) -> Vec<u32> {
        let slots = self.info().slots;
        let keys = slots.iter().filter(|slot| slot.opens_data);
        keys.map(|slot| slot.number).collect()
    }

    /// Numbers of the slots that something stands in.
    fn occupied_slots(&self) -> Vec<u32> {
        match &self.form {
            Form::V1(_) => self.active_slots(),
            Form::V2(header) => header.occupied(),
        }
    }

    /// Adds a key. `unlock` is a passphrase that opens the volume now. Gives the slot it went into.
    ///
    /// A crash on the way leaves the other slots as they were. A slot that is overwritten although it is the one that `unlock` opens has the
    /// old key or the new one in some slot all the time, as in [`Self::change_key`]. What is cancelled changed nothing.
    ///
    /// # Errors
    /// `WrongKey`; `InvalidArgument` for a slot that does not exist, holds a key, or when none is empty; `LimitExceeded` when LUKS2 has no
    /// room for the key; those of deriving and writing.
    pub fn add_key(&mut self, unlock: &[u8], new: &NewKey<'_>, env: &KeyEnv<'_>) -> Result<u32> {
        let slot = self.slot_for(new)?;
        let unlocked = self.unlock(unlock, None, &env.work)?;
        self.put(slot, &unlocked, new, env)?;
        Ok(slot)
    }

    /// Puts a new passphrase in place of the one that `old` is. Gives the slot it went into.
    ///
    /// The new key is stable in another slot before the old one is erased, also where it is to take the same slot. Only when no slot is
    /// empty is that one written again in place: a crash then leaves the keys of the other slots. LUKS2 without room for a key beside it
    /// refuses that.
    ///
    /// # Errors
    /// As [`Self::add_key`].
    pub fn change_key(&mut self, old: &[u8], new: &NewKey<'_>, env: &KeyEnv<'_>) -> Result<u32> {
        let unlocked = self.unlock(old, None, &env.work)?;
        let slot = match (new.slot, self.free_slot()) {
            (Some(_), _) => self.slot_for(new)?,
            (None, Some(free)) => free,
            (None, None) => unlocked.slot,
        };
        self.put(slot, &unlocked, new, env)?;
        if slot != unlocked.slot {
            self.erase_slot(unlocked.slot, env)?;
        }
        Ok(slot)
    }

    /// Erases keys; never the last one unless `force`. Gives the slots that were emptied.
    ///
    /// With `force` a slot without a key is no error: its erasure may have been cut off, and is ended. No copy of the header names the slot
    /// then, and no key material is left outside of the slots.
    ///
    /// # Errors
    /// `InvalidArgument` for a slot without a key, and for what would leave no key; `WrongKey` when a passphrase matches nothing.
    pub fn erase_keys(&mut self, which: EraseKeys<'_>, force: bool, env: &KeyEnv<'_>) -> Result<Vec<u32>> {
        let (active, occupied) = (self.active_slots(), self.occupied_slots());
        let mut erase = match which {
            EraseKeys::Slot(slot) => vec![slot],
            EraseKeys::SlotMatching(slot, passphrase) => {
                self.unlock(passphrase, Some(slot), &env.work)?;
                vec![slot]
            }
            EraseKeys::Matching(passphrase) => self.matching(passphrase, &env.work)?,
        };
        if force {
            erase.retain(|slot| occupied.contains(slot));
        }
        if let Some(empty) = erase.iter().find(|slot| !occupied.contains(slot)) {
            let more = self.damaged_copy().map_or(String::new(), |damage| {
                format!(", but {damage}: force the erasure, to end one that was cut off")
            });
            return Err(Error::invalid(format!("key slot {empty} holds no key{more}")).at(self.storage.name()));
        }
        if active.iter().all(|slot| erase.contains(slot)) && !force {
            let text = "this would erase the last key and with it all data; force it if that is what you want";
            return Err(Error::invalid(text).at(self.storage.name()));
        }
        if erase.is_empty() {
            self.finish_erasure(env)?;
        }
        for slot in &erase {
            self.erase_slot(*slot, env)?;
        }
        Ok(erase)
    }

    fn finish_erasure(&mut self, env: &KeyEnv<'_>) -> Result<()> {
        match &mut self.form {
            Form::V1(header) => header.finish_erasure(self.storage.as_ref(), env.random),
            Form::V2(header) => header.finish_erasure(self.storage.as_ref(), env),
        }
    }

    fn matching(&self, passphrase: &[u8], work: &KeyWork<'_>) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for slot in self.info().slots.iter().filter(|slot| slot.holds_key) {
            match self.test_key(passphrase, Some(slot.number), work) {
                Ok(slot) => found.push(slot),
                Err(error) if error.kind() == crate::ErrorKind::WrongKey => {}
                Err(error) => return Err(error),
            }
        }
        if found.is_empty() {
            Err(self.wrong_key())
        } else {
            Ok(found)
        }
    }

    fn free_slot(&self) -> Option<u32> {
        let occupied = self.occupied_slots();
        (0..self.slot_count()).find(|slot| !occupied.contains(slot))
    }

    fn slot_count(&self) -> u32 {
        match &self.form {
            Form::V1(_) => v1::SLOTS as u32,
            Form::V2(_) => v2::SLOTS,
        }
    }

    fn slot_for(&self, new: &NewKey<'_>) -> Result<u32> {
        let name = || self.storage.name().to_owned();
        let Some(slot) = new.slot else {
            return self
                .free_slot()
                .ok_or_else(|| Error::invalid("no key slot is empty: erase one").at(name()));
        };
        if slot >= self.slot_count() {
            let last = self.slot_count() - 1;
            return Err(Error::invalid(format!("there is no key slot {slot}: they are 0 to {last}")).at(name()));
        }
        if self.occupied_slots().contains(&slot) && !new.overwrite {
            return Err(Error::invalid(format!("key slot {slot} holds a key: erase it first")).at(name()));
        }
        Ok(slot)
    }

    /// Fills a slot. Deriving the key comes before all writes: an end of it leaves everything as it was.
    fn put(&mut self, slot: u32, unlocked: &UnlockedKey, new: &NewKey<'_>, env: &KeyEnv<'_>) -> Result<()> {
        // The slot that opened the volume may hold its only key.
        let spare = self.free_slot().filter(|_| slot == unlocked.slot);
        let storage = self.storage.as_ref();
        match &mut self.form {
            Form::V1(header) => {
                let least = v1::MIN_SLOT_ITERATIONS;
                let iterations = new
                    .cost
                    .iterations(header.hash, unlocked.key.len(), 1, least, &env.work)?;
                let sealed = header.seal(&unlocked.key, new.passphrase, iterations, env)?;
                match spare {
                    Some(spare) => header.replace_key(storage, slot as usize, spare as usize, &sealed, env.random),
                    None => header.store_key(storage, slot as usize, &sealed),
                }
            }
            Form::V2(header) => {
                let sealed = header.seal(&unlocked.key, new.passphrase, new.cost, Some(unlocked.slot), env)?;
                header.store_key(storage, slot, &sealed, Some(unlocked.slot), env)
            }
        }
    }

    fn erase_slot(&mut self, slot: u32, env: &KeyEnv<'_>) -> Result<()> {
        match &mut self.form {
            Form::V1(header) => header.erase_slot(self.storage.as_ref(), slot as usize, env.random),
            Form::V2(header) => header.erase_slot(self.storage.as_ref(), slot, env),
        }
    }
}
