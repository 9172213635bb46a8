//! The key slots of a LUKS2 header: finding the volume key, and putting it under another passphrase.

use zeroize::Zeroizing;

use super::header::Header;
use super::metadata::{Digest, Kdf, KeyDigest, STRIPES, Slot, SlotKey};
use crate::crypto::luks::{KeyEnv, KeyWork, UnlockedKey, same};
use crate::crypto::{HashAlgorithm, SectorCipher, af_merge, argon2, pbkdf2};
use crate::storage::read_vec;
use crate::{Error, Result, Storage};

impl Header {
    /// Tries a passphrase on the slots of the data's key, those of high priority first, or on the given one alone.
    ///
    /// # Errors
    /// `Io` and `Corrupt` when key material cannot be read, `LimitExceeded` when all these slots cost too much, `Unsupported` when the data could not be opened anyway, `Cancelled`.
    pub(crate) fn unlock(
        &self,
        storage: &dyn Storage,
        passphrase: &[u8],
        only: Option<u32>,
        work: &KeyWork<'_>,
    ) -> Result<Option<UnlockedKey>> {
        let (digest, holders) = (self.digest()?, self.holders());
        let wanted = |slot: &&Slot| holders.contains(&slot.number) && only.is_none_or(|number| number == slot.number);
        let mut slots = Vec::new();
        let mut unusable = None;
        for slot in self.meta.slots.iter().filter(wanted) {
            match &slot.key {
                Ok(key) if key.priority > 0 || only.is_some() => slots.push((slot, key)),
                Ok(_) => {}
                Err(reason) => unusable = unusable.or(Some(reason)),
            }
        }
        slots.sort_by_key(|(slot, key)| (std::cmp::Reverse(key.priority), slot.number));
        let mut effort = work.effort();
        for (slot, how) in slots {
            match how.kdf {
                Kdf::Pbkdf2 { iterations, .. } => effort.spend_iterations(iterations)?,
                Kdf::Argon2 { cost, .. } => effort.spend_argon2(cost)?,
            }
            effort.spend_iterations(digest.iterations)?;
            let key = slot_key(storage, slot.offset, how, passphrase, work)?;
            if same(&digest_of(digest, &key, work)?, &digest.digest) {
                return Ok(Some(UnlockedKey { key, slot: slot.number }));
            }
        }
        unusable.map_or(Ok(None), |reason| Err(Error::unsupported(reason.clone())))
    }

    /// The digest of the data's key.
    pub(super) fn digest(&self) -> Result<&KeyDigest> {
        let segment = self.meta.segment.as_ref();
        segment.map_err(|reason| Error::unsupported(reason.clone()))?;
        let found = self
            .data_digest()
            .ok_or_else(|| Error::corrupt("the data of the LUKS2 header belongs to no digest"))?;
        found.how.as_ref().map_err(|reason| Error::unsupported(reason.clone()))
    }

    /// The slots that hold the data's key, as the header says.
    pub(super) fn holders(&self) -> &[u32] {
        self.data_digest().map_or(&[], |digest| &digest.slots)
    }

    fn data_digest(&self) -> Option<&Digest> {
        let segment = self.meta.segment.as_ref().ok()?;
        let mut digests = self.meta.digests.iter();
        digests.find(|digest| digest.segments.contains(&segment.number))
    }
}

fn slot_key(
    storage: &dyn Storage,
    offset: u64,
    how: &SlotKey,
    passphrase: &[u8],
    work: &KeyWork<'_>,
) -> Result<Zeroizing<Vec<u8>>> {
    let len = how.len * STRIPES as usize;
    let mut material = Zeroizing::new(read_vec(storage, offset, len.next_multiple_of(512))?);
    slot_cipher(how, passphrase, work)?.decrypt(0, &mut material)?;
    af_merge(how.af_hash, material.get(..len).unwrap_or_default(), STRIPES)
}

pub(super) fn slot_cipher(slot: &SlotKey, passphrase: &[u8], work: &KeyWork<'_>) -> Result<SectorCipher> {
    let mut derived = Zeroizing::new(vec![0; slot.spec.key_len()]);
    match slot.kdf {
        Kdf::Pbkdf2 { hash, iterations } => {
            pbkdf2(hash, passphrase, &slot.salt, iterations, work.cancelled, &mut derived)?;
        }
        Kdf::Argon2 { variant, cost } => {
            let limit = work.argon2_limit();
            argon2(
                variant,
                passphrase,
                &slot.salt,
                cost,
                &limit,
                work.cancelled,
                &mut derived,
            )?;
        }
    }
    SectorCipher::new(slot.spec, &derived, 512)
}

pub(super) fn digest_of(digest: &KeyDigest, key: &[u8], work: &KeyWork<'_>) -> Result<Zeroizing<Vec<u8>>> {
    let mut out = Zeroizing::new(vec![0; digest.digest.len()]);
    pbkdf2(
        digest.hash,
        key,
        &digest.salt,
        digest.iterations,
        work.cancelled,
        &mut out,
    )?;
    Ok(out)
}

/// What a new digest is made of.
pub(super) fn new_digest(hash: HashAlgorithm, iterations: u32, key: &[u8], env: &KeyEnv<'_>) -> Result<KeyDigest> {
    let mut salt = vec![0; 32];
    (env.random)(&mut salt);
    let digest = Zeroizing::new(vec![0; hash.digest_len()]);
    let mut new = KeyDigest {
        hash,
        iterations,
        salt,
        digest,
    };
    new.digest = digest_of(&new, key, &env.work)?;
    Ok(new)
}
