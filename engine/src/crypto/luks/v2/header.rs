//! Both copies of a LUKS2 header: which of them counts, and how they are replaced.

use serde_json::{Map, Value};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::json;
use super::layout::{BINARY_LEN, CHECKSUM_AT, MAGIC, MAGIC_2ND, RawHeader, SIZES};
use super::metadata::{Metadata, check};
use crate::crypto::HashAlgorithm;
use crate::crypto::luks::v1::{field_of, text_of};
use crate::crypto::luks::{KeyWork, same};
use crate::storage::read_vec;
use crate::{Error, ErrorKind, Result, Storage};

/// A header with one valid copy at least.
pub(crate) struct Header {
    raw: RawHeader,
    pub(super) json: Map<String, Value>,
    pub(super) meta: Metadata,
    pub(crate) uuid: String,
    /// Which copy is damaged, and why.
    pub(crate) damaged_copy: Option<String>,
}

impl Header {
    /// Reads both copies; the valid one with the higher sequence number counts.
    ///
    /// # Errors
    /// `Corrupt` when neither is valid; `Unsupported` and `LimitExceeded` for what the chosen one asks for.
    pub(crate) fn read(storage: &dyn Storage, work: &KeyWork<'_>) -> Result<Self> {
        let first = read_copy(storage, 0);
        let second = match &first {
            Ok(copy) => read_copy(storage, copy.raw.size.get()),
            Err(_) => find_second(storage),
        };
        let (copy, damaged_copy) = match (first, second) {
            (Ok(first), Ok(second)) if second.raw.sequence.get() > first.raw.sequence.get() => (second, None),
            (Ok(first), Ok(_)) => (first, None),
            (Ok(first), Err(error)) => (
                first,
                Some(format!("the second header copy is damaged: {}", error.what())),
            ),
            (Err(error), Ok(second)) => (
                second,
                Some(format!("the first header copy is damaged: {}", error.what())),
            ),
            (Err(error), Err(_)) => return Err(error.at(storage.name())),
        };
        let meta = check(&copy.json, copy.raw.size.get(), work).map_err(|error| error.at(storage.name()))?;
        let uuid = text_of(&copy.raw.uuid).unwrap_or_default().to_owned();
        Ok(Self {
            raw: copy.raw,
            json: copy.json,
            meta,
            uuid,
            damaged_copy,
        })
    }

    /// Replaces the JSON: the first copy, flush, the second, flush. A crash leaves one of them whole.
    ///
    /// # Errors
    /// `LimitExceeded` when the text does not fit, `Io`.
    pub(super) fn replace(
        &mut self,
        storage: &dyn Storage,
        json: Map<String, Value>,
        work: &KeyWork<'_>,
        random: &dyn Fn(&mut [u8]),
    ) -> Result<()> {
        let meta = check(&json, self.raw.size.get(), work)?;
        let sequence = self
            .raw
            .sequence
            .get()
            .checked_add(1)
            .ok_or_else(|| Error::corrupt("the LUKS2 sequence number is at its end"))?;
        let mut raw = self.raw.clone();
        raw.sequence = sequence.into();
        let size = raw.size.get();
        for (magic, offset) in [(MAGIC, 0), (MAGIC_2ND, size)] {
            (raw.magic, raw.offset) = (magic, offset.into());
            random(&mut raw.salt);
            storage.write_at(offset, &encode(&mut raw, &json)?)?;
            storage.flush()?;
        }
        (self.raw, self.json, self.meta, self.damaged_copy) = (raw, json, meta, None);
        Ok(())
    }

    /// A header that was never written, with the given JSON.
    pub(super) fn fresh(json: Map<String, Value>, size: u64, uuid: Uuid, work: &KeyWork<'_>) -> Result<Self> {
        let meta = check(&json, size, work)?;
        let too_long = || Error::invalid("a name is too long for a LUKS2 header");
        let uuid = uuid.hyphenated().to_string();
        let mut raw = RawHeader::zeroed();
        raw.version = 2.into();
        raw.size = size.into();
        raw.checksum_alg = field_of("sha256").ok_or_else(too_long)?;
        raw.uuid = field_of(&uuid).ok_or_else(too_long)?;
        Ok(Self {
            raw,
            json,
            meta,
            uuid,
            damaged_copy: None,
        })
    }
}

struct Copy {
    raw: RawHeader,
    json: Map<String, Value>,
}

/// The copy at `offset`: 0, or where a second one can stand.
fn read_copy(storage: &dyn Storage, offset: u64) -> Result<Copy> {
    let short = || Error::corrupt(format!("no room for a LUKS2 header at {offset:#x}"));
    let bytes = read_vec(storage, offset, size_of::<RawHeader>()).map_err(|error| kind_or(error, short()))?;
    let raw = RawHeader::read_from_bytes(&bytes).map_err(|_| short())?;
    let magic = if offset == 0 { MAGIC } else { MAGIC_2ND };
    let size = raw.size.get();
    if raw.magic != magic || raw.version.get() != 2 || raw.offset.get() != offset {
        return Err(Error::corrupt(format!("no LUKS2 header at {offset:#x}")));
    }
    if !SIZES.contains(&size) || (offset != 0 && offset != size) {
        return Err(Error::corrupt(format!("a LUKS2 header of {size} bytes at {offset:#x}")));
    }
    let mut bytes = read_vec(storage, offset, size as usize).map_err(|error| kind_or(error, short()))?;
    let hash = text_of(&raw.checksum_alg).ok_or_else(|| Error::corrupt("the LUKS2 checksum has no hash"))?;
    let hash = HashAlgorithm::from_name(hash)?;
    clear_checksum(&mut bytes);
    let found = hash.digest(&[&bytes]);
    if !same(&found, raw.checksum.get(..found.len()).unwrap_or_default()) {
        return Err(Error::corrupt(format!(
            "the checksum of the LUKS2 header at {offset:#x} is wrong"
        )));
    }
    let json = json::parse(bytes.get(BINARY_LEN..).unwrap_or_default())?;
    Ok(Copy { raw, json })
}

/// Looks for a second copy where the first one does not say where it is.
fn find_second(storage: &dyn Storage) -> Result<Copy> {
    let mut last = Error::corrupt("no second LUKS2 header");
    for offset in SIZES {
        match read_copy(storage, offset) {
            Ok(copy) => return Ok(copy),
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whether a second copy stands where one can, although the first one is gone.
pub(crate) fn has_second(storage: &dyn Storage) -> bool {
    find_second(storage).is_ok()
}

fn kind_or(error: Error, other: Error) -> Error {
    if error.kind() == ErrorKind::Io { error } else { other }
}

fn clear_checksum(bytes: &mut [u8]) {
    bytes.iter_mut().skip(CHECKSUM_AT).take(64).for_each(|byte| *byte = 0);
}

/// The bytes of a copy; sets the checksum.
fn encode(raw: &mut RawHeader, json: &Map<String, Value>) -> Result<Vec<u8>> {
    let size = usize::try_from(raw.size.get()).map_err(|_| Error::corrupt("a LUKS2 header larger than memory"))?;
    let text =
        serde_json::to_vec(json).map_err(|error| Error::invalid("the LUKS2 header is no JSON").because(error))?;
    if text.len() + BINARY_LEN >= size {
        return Err(Error::limit(format!(
            "{} bytes of JSON do not fit into a LUKS2 header of {size}",
            text.len()
        )));
    }
    let mut bytes = vec![0; size];
    let hash = HashAlgorithm::from_name(text_of(&raw.checksum_alg).unwrap_or_default())?;
    raw.checksum = [0; 64];
    bytes.iter_mut().zip(raw.as_bytes()).for_each(|(to, from)| *to = *from);
    bytes
        .iter_mut()
        .skip(BINARY_LEN)
        .zip(&text)
        .for_each(|(to, from)| *to = *from);
    let checksum = hash.digest(&[&bytes]);
    raw.checksum
        .iter_mut()
        .zip(checksum.iter())
        .for_each(|(to, from)| *to = *from);
    bytes
        .iter_mut()
        .skip(CHECKSUM_AT)
        .zip(checksum.iter())
        .for_each(|(to, from)| *to = *from);
    Ok(bytes)
}
