//! A LUKS1 header that was checked.

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{ACTIVE, INACTIVE, MAGIC, RawHeader, RawSlot, SECTOR, SLOTS, STRIPES, field_of, text_of};
use crate::crypto::luks::NewLuks;
use crate::crypto::{CipherSpec, HashAlgorithm};
use crate::{Error, Limits, Result, Storage};

/// Header fields that passed [`check`]; the raw form is kept to be changed and written back.
pub(crate) struct Header {
    pub(super) raw: RawHeader,
    pub(crate) spec: CipherSpec,
    pub(crate) hash: HashAlgorithm,
    pub(crate) uuid: String,
    pub(crate) slots: [Slot; SLOTS],
}

/// A key slot with its numbers checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// PBKDF2 iterations; `None` for an empty slot.
    pub iterations: Option<u32>,
    /// First byte of the key material, from the start of the header.
    pub key_offset: u64,
}

impl Header {
    /// Reads and checks the header at the start of `storage`.
    ///
    /// # Errors
    /// `NotThisFormat` without the magic, `Unsupported` for another version or an unknown cipher, `Corrupt` for what
    /// contradicts the specification, `LimitExceeded` for too many iterations.
    pub(crate) fn read(storage: &dyn Storage, limits: &Limits) -> Result<Self> {
        if storage.len()? < size_of::<RawHeader>() as u64 {
            return Err(Error::not_this_format("too short for a LUKS header").at(storage.name()));
        }
        let mut bytes = [0; size_of::<RawHeader>()];
        storage.read_at(0, &mut bytes)?;
        let raw = RawHeader::read_from_bytes(&bytes).map_err(|_| Error::corrupt("a LUKS header has 592 bytes"))?;
        check(raw, limits).map_err(|error| error.at(storage.name()))
    }

    /// First byte of the encrypted data; 0 when the header is detached.
    pub(crate) fn payload_offset(&self) -> u64 {
        u64::from(self.raw.payload_offset.get()) * SECTOR
    }

    /// Iterations of the volume key's digest.
    pub(crate) fn key_digest_iterations(&self) -> u32 {
        self.raw.key_digest_iterations.get()
    }

    /// Bytes of a slot's key material on disk, in whole sectors.
    pub(crate) fn material_len(&self) -> u64 {
        material_len(self.spec.key_len())
    }

    /// The bytes to be written back.
    pub(super) fn bytes(&self) -> &[u8] {
        self.raw.as_bytes()
    }
}

/// Bytes of key material for a volume key of `key_len` bytes, in whole sectors.
pub(crate) fn material_len(key_len: usize) -> u64 {
    (key_len as u64 * u64::from(STRIPES)).next_multiple_of(SECTOR)
}

/// Turns a raw header into a checked one: strings, numbers, and where everything lies.
///
/// Key material may begin right behind the 592 bytes, as the first programs wrote it; QEMU wants it at 4096.
pub(super) fn check(raw: RawHeader, limits: &Limits) -> Result<Header> {
    if raw.magic != MAGIC {
        return Err(Error::not_this_format("no LUKS magic at offset 0x0"));
    }
    if raw.version.get() != 1 {
        return Err(Error::unsupported(format!(
            "LUKS version {} is not supported here",
            raw.version
        )));
    }
    let cipher = text(&raw.cipher_name, "cipher name")?;
    let mode = text(&raw.cipher_mode, "cipher mode")?;
    let hash = HashAlgorithm::from_name(&text(&raw.hash_spec, "hash")?)?;
    if hash.is_truncated() {
        return Err(Error::unsupported(format!("hash '{}' serves ESSIV alone", hash.name())));
    }
    let uuid = text(&raw.uuid, "UUID")?;
    let key_bytes = usize::try_from(raw.key_bytes.get()).unwrap_or(usize::MAX);
    let spec = CipherSpec::parse(&cipher, &mode, key_bytes)?;
    iterations("volume key", raw.key_digest_iterations.get(), limits)?;
    let mut slots = [Slot {
        iterations: None,
        key_offset: 0,
    }; SLOTS];
    for (number, (slot, raw)) in slots.iter_mut().zip(&raw.slots).enumerate() {
        *slot = check_slot(number, raw, limits)?;
    }
    check_places(
        &slots,
        material_len(spec.key_len()),
        u64::from(raw.payload_offset.get()) * SECTOR,
    )?;
    Ok(Header {
        raw,
        spec,
        hash,
        uuid,
        slots,
    })
}

fn text(field: &[u8], name: &str) -> Result<String> {
    let found = text_of(field).map(str::to_owned);
    found.ok_or_else(|| {
        Error::corrupt(format!(
            "the {name} of the LUKS header is not a text that ends with a NUL"
        ))
    })
}

fn iterations(of: &str, count: u32, limits: &Limits) -> Result<()> {
    if count == 0 {
        return Err(Error::corrupt(format!("the {of} has 0 PBKDF2 iterations")));
    }
    if u64::from(count) > limits.kdf_iterations {
        let limit = limits.kdf_iterations;
        return Err(Error::limit(format!(
            "the {of} wants {count} PBKDF2 iterations, the limit is {limit}"
        )));
    }
    Ok(())
}

fn check_slot(number: usize, raw: &RawSlot, limits: &Limits) -> Result<Slot> {
    if raw.stripes.get() != STRIPES {
        return Err(Error::corrupt(format!(
            "key slot {number} has {} stripes, not {STRIPES}",
            raw.stripes
        )));
    }
    let active = match raw.state.get() {
        ACTIVE => true,
        INACTIVE => false,
        state => {
            return Err(Error::corrupt(format!(
                "key slot {number} has the unknown state {state:#x}"
            )));
        }
    };
    if active {
        iterations(&format!("key slot {number}"), raw.iterations.get(), limits)?;
    }
    let key_offset = u64::from(raw.key_offset.get()) * SECTOR;
    if key_offset < size_of::<RawHeader>() as u64 {
        return Err(Error::corrupt(format!(
            "key slot {number} lies in the header, at {key_offset:#x}"
        )));
    }
    Ok(Slot {
        iterations: active.then_some(raw.iterations.get()),
        key_offset,
    })
}

/// Key material of all slots, empty ones too, lies before the payload and apart.
fn check_places(slots: &[Slot; SLOTS], len: u64, payload: u64) -> Result<()> {
    for (number, slot) in slots.iter().enumerate() {
        let end = slot.key_offset + len;
        if payload != 0 && end > payload {
            let text = format!("key slot {number} ends at {end:#x}, in the payload, which begins at {payload:#x}");
            return Err(Error::corrupt(text));
        }
        let rest = slots.iter().enumerate().skip(number + 1);
        for (other, next) in rest {
            if slot.key_offset < next.key_offset + len && next.key_offset < end {
                return Err(Error::corrupt(format!("key slots {number} and {other} overlap")));
            }
        }
    }
    Ok(())
}

/// A new header without any key: fields that the caller chose, slots laid out as QEMU and cryptsetup do.
pub(super) fn fresh(new: &NewLuks) -> Result<Header> {
    let (spec, hash) = (new.spec, new.hash);
    let too_long = || Error::invalid("a cipher, mode or hash name is too long for a LUKS1 header");
    let mut raw = RawHeader::zeroed();
    raw.magic = MAGIC;
    raw.version = 1.into();
    raw.cipher_name = field_of(spec.algorithm().family()).ok_or_else(too_long)?;
    raw.cipher_mode = field_of(&new.mode_text()).ok_or_else(too_long)?;
    raw.hash_spec = field_of(hash.name()).ok_or_else(too_long)?;
    raw.key_bytes = u32::try_from(spec.key_len()).map_err(|_| too_long())?.into();
    let uuid = new.uuid.hyphenated().to_string();
    raw.uuid = field_of(&uuid).ok_or_else(too_long)?;
    let len = material_len(spec.key_len()).next_multiple_of(ALIGN);
    let mut slots = [Slot {
        iterations: None,
        key_offset: 0,
    }; SLOTS];
    let mut next = ALIGN;
    for (slot, raw) in slots.iter_mut().zip(&mut raw.slots) {
        slot.key_offset = next;
        raw.state = INACTIVE.into();
        raw.stripes = STRIPES.into();
        raw.key_offset = sectors(next)?.into();
        next += len;
    }
    raw.payload_offset = if new.detached { 0.into() } else { sectors(next)?.into() };
    Ok(Header {
        raw,
        spec,
        hash,
        uuid,
        slots,
    })
}

/// Key material and payload begin at multiples of this.
const ALIGN: u64 = 4096;

fn sectors(bytes: u64) -> Result<u32> {
    u32::try_from(bytes / SECTOR).map_err(|_| Error::invalid("an offset does not fit into a LUKS1 header"))
}
