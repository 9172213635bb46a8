//! Filling and erasing the key slots of a LUKS2 header. The JSON is changed as text would be: what this program does not know stays.

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::header::Header;
use super::metadata::{Kdf, STRIPES, SlotKey};
use super::slots::slot_cipher;
use crate::crypto::luks::wipe::{overwrite, overwrite_remains};
use crate::crypto::luks::{KdfCost, KeyEnv, KeyWork, measure_argon2};
use crate::crypto::{Argon2Cost, Argon2Variant, CipherSpec, HashAlgorithm, af_split, to_base64};
use crate::{Error, Result, Storage};

/// Key material is given space in units of this.
const ALIGN: u64 = 4096;
/// Least iterations of a slot, as cryptsetup has it.
const MIN_ITERATIONS: u32 = 1000;

/// Where the key material of a slot lies.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    size: u64,
}

impl Place {
    fn range(&self) -> (u64, u64) {
        (self.offset, self.offset + self.size)
    }
}

/// The volume key under a passphrase, for any slot.
pub(crate) struct SealedKey {
    how: SlotKey,
    material: Zeroizing<Vec<u8>>,
}

impl Header {
    /// Numbers of the slots that exist, whatever they hold.
    pub(crate) fn occupied(&self) -> Vec<u32> {
        self.meta.slots.iter().map(|slot| slot.number).collect()
    }

    /// Puts the volume key under a passphrase. Nothing is written: this is the part that takes long and can be cancelled.
    ///
    /// A cost that does not say Argon2 is one of the derivation by which `opened` holds the volume key: a new key is no easier to guess.
    pub(crate) fn seal(
        &self,
        key: &[u8],
        passphrase: &[u8],
        cost: KdfCost,
        opened: Option<u32>,
        env: &KeyEnv<'_>,
    ) -> Result<SealedKey> {
        let hash = self.digest()?.hash;
        let mut salt = vec![0; 32];
        (env.random)(&mut salt);
        let how = SlotKey {
            priority: 1,
            len: key.len(),
            af_hash: hash,
            spec: CipherSpec::parse_joined("aes-xts-plain64", 64)?,
            kdf: self.derivation(hash, key.len(), cost, opened, &env.work)?,
            salt,
        };
        let mut material = Zeroizing::new(vec![0; (key.len() * STRIPES as usize).next_multiple_of(512)]);
        let mut stripes = Zeroizing::new(vec![0; key.len() * (STRIPES as usize - 1)]);
        (env.random)(&mut stripes);
        let split = af_split(how.af_hash, key, STRIPES, stripes)?;
        material.iter_mut().zip(split.iter()).for_each(|(to, from)| *to = *from);
        slot_cipher(&how, passphrase, &env.work)?.encrypt(0, &mut material)?;
        Ok(SealedKey { how, material })
    }

    fn derivation(
        &self,
        hash: HashAlgorithm,
        key_len: usize,
        cost: KdfCost,
        opened: Option<u32>,
        work: &KeyWork<'_>,
    ) -> Result<Kdf> {
        let opened = self.meta.slots.iter().find(|slot| Some(slot.number) == opened);
        let like = opened.and_then(|slot| slot.key.as_ref().ok()).map(|key| key.kdf);
        let cost = match (cost, like) {
            (KdfCost::Time(time), Some(Kdf::Argon2 { variant, cost })) => {
                measure_argon2(variant, cost.memory_kib, cost.lanes, time, work)?
            }
            (KdfCost::Iterations(time), Some(Kdf::Argon2 { variant, cost })) => {
                KdfCost::Argon2(variant, Argon2Cost { time, ..cost })
            }
            (cost, _) => cost,
        };
        match cost {
            KdfCost::Argon2(variant, cost) => {
                cost.check(&work.argon2_limit())?;
                Ok(Kdf::Argon2 { variant, cost })
            }
            other => Ok(Kdf::Pbkdf2 {
                hash,
                iterations: other.iterations(hash, key_len, 1, MIN_ITERATIONS, work)?,
            }),
        }
    }

    /// Puts a sealed key into a slot, in place of what stands in it.
    ///
    /// The order is: key material where nothing lies, flush, both headers, garbage over the old key material. A crash leaves the old key
    /// in the slot or the new one. Where there is no other room than that of the old key, it is erased first, but for the key in slot
    /// `opened`, which may be the only one.
    pub(crate) fn store_key(
        &mut self,
        storage: &dyn Storage,
        number: u32,
        sealed: &SealedKey,
        opened: Option<u32>,
        env: &KeyEnv<'_>,
    ) -> Result<()> {
        let size = (sealed.how.len as u64 * u64::from(STRIPES)).next_multiple_of(ALIGN);
        let old = self.place(number);
        let (place, replaced) = match (self.free_area(size), old) {
            (Some(offset), old) => (Place { offset, size }, old),
            (None, Some(_)) if opened == Some(number) => {
                let text = format!(
                    "no room for a new key beside the one in key slot {number}, which may be the only one: erase another slot"
                );
                return Err(Error::limit(text));
            }
            (None, Some(old)) if old.size >= size => {
                self.erase_slot(storage, number, env)?;
                (old, None)
            }
            (None, _) => return Err(Error::limit("no room for the key material of another slot")),
        };
        let (mut json, name) = (self.json.clone(), number.to_string());
        forget(&mut json, &name);
        put(&mut json, &["keyslots"], &name, slot_json(&place, &sealed.how));
        for digest in self.digest_names()? {
            push(&mut json, &["digests", &digest, "keyslots"], name.as_str().into());
        }
        storage.write_at(place.offset, &sealed.material)?;
        storage.flush()?;
        self.replace(storage, json, &env.work, env.random)?;
        replaced.map_or(Ok(()), |old| overwrite(storage, old.range(), env.random))
    }

    fn place(&self, number: u32) -> Option<Place> {
        let slot = self.meta.slots.iter().find(|slot| slot.number == number)?;
        Some(Place {
            offset: slot.offset,
            size: slot.size,
        })
    }

    /// First room of `size` bytes between the areas of the slots.
    fn free_area(&self, size: u64) -> Option<u64> {
        let starts = self
            .gaps()
            .into_iter()
            .map(|(from, to)| (from.next_multiple_of(ALIGN), to));
        let mut wide = starts.filter(|(from, to)| to.saturating_sub(*from) >= size);
        wide.next().map(|(from, _)| from)
    }

    /// The parts of the area for key material that belong to no slot.
    fn gaps(&self) -> Vec<(u64, u64)> {
        let (mut start, end) = self.meta.area;
        let slots = self.meta.slots.iter();
        let mut taken: Vec<_> = slots.map(|slot| (slot.offset, slot.offset + slot.size)).collect();
        taken.sort_unstable();
        let mut gaps = Vec::new();
        for (from, to) in taken.into_iter().chain([(end, end)]) {
            if start < from {
                gaps.push((start, from));
            }
            start = start.max(to);
        }
        gaps
    }

    /// Empties a slot for good: first both headers forget it, then its key material is overwritten.
    pub(crate) fn erase_slot(&mut self, storage: &dyn Storage, number: u32, env: &KeyEnv<'_>) -> Result<()> {
        let place = self.place(number);
        let place = place.ok_or_else(|| Error::invalid(format!("key slot {number} holds no key")))?;
        let mut json = self.json.clone();
        forget(&mut json, &number.to_string());
        self.replace(storage, json, &env.work, env.random)?;
        overwrite(storage, place.range(), env.random)
    }

    /// Ends erasures that were cut off: both copies anew where one of them may name more slots, and garbage over the key material of none.
    ///
    /// # Errors
    /// `Unsupported` where more than key slots may lie in their area; `Io`.
    pub(crate) fn finish_erasure(&mut self, storage: &dyn Storage, env: &KeyEnv<'_>) -> Result<()> {
        let segment = self.meta.segment.as_ref();
        segment.map_err(|reason| Error::unsupported(reason.clone()))?;
        if self.damaged_copy.is_some() {
            self.replace(storage, self.json.clone(), &env.work, env.random)?;
        }
        let mut gaps = self.gaps().into_iter();
        gaps.try_for_each(|gap| overwrite_remains(storage, gap, env.random))
    }

    /// Names of the digests of the data's key in the JSON.
    fn digest_names(&self) -> Result<Vec<String>> {
        let segment = self
            .meta
            .segment
            .as_ref()
            .map_err(|reason| Error::unsupported(reason.clone()))?
            .number
            .to_string();
        let digests = self
            .json
            .get("digests")
            .and_then(Value::as_object)
            .into_iter()
            .flatten();
        let holds = |digest: &Value| {
            digest
                .get("segments")
                .and_then(Value::as_array)
                .is_some_and(|list| list.iter().any(|s| s.as_str() == Some(&segment)))
        };
        Ok(digests
            .filter(|(_, digest)| holds(digest))
            .map(|(name, _)| name.clone())
            .collect())
    }
}

/// Takes a slot out of the JSON, and out of the digests and tokens that name it.
fn forget(json: &mut Map<String, Value>, name: &str) {
    if let Some(slots) = json.get_mut("keyslots").and_then(Value::as_object_mut) {
        slots.shift_remove(name);
    }
    for collection in ["digests", "tokens"] {
        let members = json
            .get_mut(collection)
            .and_then(Value::as_object_mut)
            .into_iter()
            .flat_map(|map| map.values_mut());
        for list in members
            .filter_map(|member| member.get_mut("keyslots"))
            .filter_map(Value::as_array_mut)
        {
            list.retain(|entry| entry.as_str() != Some(name));
        }
    }
}

fn slot_json(place: &Place, slot: &SlotKey) -> Value {
    let salt = to_base64(&slot.salt);
    let kdf = match slot.kdf {
        Kdf::Pbkdf2 { hash, iterations } => {
            json!({ "type": "pbkdf2", "hash": hash.name(), "iterations": iterations, "salt": salt })
        }
        Kdf::Argon2 { variant, cost } => json!({
            "type": variant_name(variant), "time": cost.time, "memory": cost.memory_kib, "cpus": cost.lanes, "salt": salt,
        }),
    };
    json!({
        "type": "luks2",
        "key_size": slot.len,
        "af": { "type": "luks1", "stripes": STRIPES, "hash": slot.af_hash.name() },
        "area": {
            "type": "raw",
            "offset": place.offset.to_string(),
            "size": place.size.to_string(),
            "encryption": format!("{}-{}", slot.spec.algorithm().family(), slot.spec.mode_text()),
            "key_size": slot.spec.key_len(),
        },
        "kdf": kdf,
    })
}

/// The name in headers.
pub(super) fn variant_name(variant: Argon2Variant) -> &'static str {
    match variant {
        Argon2Variant::Argon2i => "argon2i",
        Argon2Variant::Argon2id => "argon2id",
    }
}

fn at<'a>(json: &'a mut Map<String, Value>, path: &[&str]) -> Option<&'a mut Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(json.get_mut(*first)?, |value, name| value.get_mut(*name))
}

fn put(json: &mut Map<String, Value>, path: &[&str], name: &str, value: Value) {
    if let Some(map) = at(json, path).and_then(Value::as_object_mut) {
        map.insert(name.to_owned(), value);
    }
}

fn push(json: &mut Map<String, Value>, path: &[&str], value: Value) {
    if let Some(list) = at(json, path).and_then(Value::as_array_mut) {
        list.push(value);
    }
}
