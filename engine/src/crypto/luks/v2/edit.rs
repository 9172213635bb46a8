//! Filling and erasing the key slots of a LUKS2 header. The JSON is changed as text would be: what this program does not know stays.

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::header::Header;
use super::metadata::{Kdf, STRIPES, SlotKey};
use super::slots::slot_cipher;
use crate::crypto::luks::{KdfCost, KeyEnv};
use crate::crypto::{Argon2Variant, CipherSpec, af_split, to_base64};
use crate::{Error, Result, Storage};

/// Key material is given space in units of this.
const ALIGN: u64 = 4096;
/// Slots at most, as cryptsetup has it.
pub(crate) const SLOTS: u32 = 32;
/// Least iterations of a slot, as cryptsetup has it.
const MIN_ITERATIONS: u32 = 1000;

/// Where a new slot's key material goes.
struct Place {
    offset: u64,
    size: u64,
}

impl Header {
    /// Numbers of the slots that exist, whatever they hold.
    pub(crate) fn active(&self) -> Vec<u32> {
        self.meta.slots.iter().map(|slot| slot.number).collect()
    }

    /// Puts the volume key into a slot, under a passphrase.
    ///
    /// The order is: an old key of that slot is forgotten, key material, flush, both headers. A crash before the end leaves the other
    /// slots as they were.
    pub(crate) fn fill_slot(
        &mut self,
        storage: &dyn Storage,
        number: u32,
        key: &[u8],
        passphrase: &[u8],
        cost: KdfCost,
        env: &KeyEnv<'_>,
    ) -> Result<()> {
        if self.active().contains(&number) {
            self.erase_slot(storage, number, env)?;
        }
        let (slot, how) = self.new_slot(key.len(), cost, env)?;
        let mut json = self.json.clone();
        put(&mut json, &["keyslots"], &number.to_string(), slot_json(&slot, &how));
        for digest in self.digest_names()? {
            push(&mut json, &["digests", &digest, "keyslots"], number.to_string().into());
        }
        let mut material = Zeroizing::new(vec![0; (key.len() * STRIPES as usize).next_multiple_of(512)]);
        let mut stripes = Zeroizing::new(vec![0; key.len() * (STRIPES as usize - 1)]);
        (env.random)(&mut stripes);
        let split = af_split(how.af_hash, key, STRIPES, stripes)?;
        material.iter_mut().zip(split.iter()).for_each(|(to, from)| *to = *from);
        slot_cipher(&how, passphrase, &env.work)?.encrypt(0, &mut material)?;
        storage.write_at(slot.offset, &material)?;
        storage.flush()?;
        self.replace(storage, json, &env.work, env.random)
    }

    fn new_slot(&self, key_len: usize, cost: KdfCost, env: &KeyEnv<'_>) -> Result<(Place, SlotKey)> {
        let hash = self.digest()?.hash;
        let kdf = match cost {
            KdfCost::Argon2(variant, cost) => {
                cost.check(&env.work.argon2_limit())?;
                Kdf::Argon2 { variant, cost }
            }
            other => Kdf::Pbkdf2 {
                hash,
                iterations: other.iterations(hash, key_len, 1, MIN_ITERATIONS, &env.work)?,
            },
        };
        let size = (key_len as u64 * u64::from(STRIPES)).next_multiple_of(ALIGN);
        let offset = self
            .free_area(size)
            .ok_or_else(|| Error::limit("no room for the key material of another slot"))?;
        let mut salt = vec![0; 32];
        (env.random)(&mut salt);
        let spec = CipherSpec::parse_joined("aes-xts-plain64", 64)?;
        let how = SlotKey {
            priority: 1,
            len: key_len,
            af_hash: hash,
            spec,
            kdf,
            salt,
        };
        Ok((Place { offset, size }, how))
    }

    /// First gap of `size` bytes between the areas of the slots.
    fn free_area(&self, size: u64) -> Option<u64> {
        let mut taken: Vec<_> = self
            .meta
            .slots
            .iter()
            .map(|slot| (slot.offset, slot.offset + slot.size))
            .collect();
        taken.sort_unstable();
        let mut start = self.meta.area.0;
        for (from, to) in taken {
            if from.saturating_sub(start) >= size {
                break;
            }
            start = start.max(to.next_multiple_of(ALIGN));
        }
        (start + size <= self.meta.area.1).then_some(start)
    }

    /// Empties a slot for good: first both headers forget it, then its key material is overwritten.
    pub(crate) fn erase_slot(&mut self, storage: &dyn Storage, number: u32, env: &KeyEnv<'_>) -> Result<()> {
        let found = self.meta.slots.iter().find(|slot| slot.number == number);
        let slot = found.ok_or_else(|| Error::invalid(format!("key slot {number} holds no key")))?;
        let (offset, size) = (slot.offset, slot.size);
        let mut json = self.json.clone();
        let name = number.to_string();
        if let Some(slots) = json.get_mut("keyslots").and_then(Value::as_object_mut) {
            slots.shift_remove(&name);
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
                list.retain(|entry| entry.as_str() != Some(&name));
            }
        }
        self.replace(storage, json, &env.work, env.random)?;
        let mut garbage = vec![0; 64 << 10];
        let mut done = 0;
        while done < size {
            let now = (size - done).min(garbage.len() as u64);
            (env.random)(&mut garbage);
            storage.write_at(offset + done, garbage.get(..now as usize).unwrap_or_default())?;
            done += now;
        }
        storage.flush()
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
