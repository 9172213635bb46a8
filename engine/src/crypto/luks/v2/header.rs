//! Both copies of a LUKS2 header: which of them counts, and how they are replaced.

use std::cmp::Ordering;

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
    /// Which copy is damaged or out of date, and why.
    pub(crate) damaged_copy: Option<String>,
    /// The copy that is not to be relied on, damaged or out of date, or the first one where both are good. It is written first: the
    /// other one is whole until then.
    weaker: Position,
}

/// Which copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    First,
    Second,
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
        let (copy, weaker, damaged_copy) = match (first, second) {
            (Ok(first), Ok(second)) => {
                let sequences = (first.raw.sequence.get(), second.raw.sequence.get());
                match sequences.0.cmp(&sequences.1) {
                    Ordering::Less => (second, Position::First, Some(stale("first", sequences.0, sequences.1))),
                    Ordering::Equal => (first, Position::First, None),
                    Ordering::Greater => (first, Position::Second, Some(stale("second", sequences.1, sequences.0))),
                }
            }
            (Ok(first), Err(error)) => {
                let damage = format!("the second header copy is damaged: {}", error.what());
                (first, Position::Second, Some(damage))
            }
            (Err(error), Ok(second)) => {
                let damage = format!("the first header copy is damaged: {}", error.what());
                (second, Position::First, Some(damage))
            }
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
            weaker,
        })
    }

    /// Replaces the JSON: the weaker copy, flush, the other one, flush. A crash leaves one of them whole, and so does a write that fails.
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
        let order = match self.weaker {
            Position::First => [Position::First, Position::Second],
            Position::Second => [Position::Second, Position::First],
        };
        for position in order {
            let (magic, offset) = match position {
                Position::First => (MAGIC, 0),
                Position::Second => (MAGIC_2ND, raw.size.get()),
            };
            (raw.magic, raw.offset) = (magic, offset.into());
            random(&mut raw.salt);
            let bytes = encode(&mut raw, &json)?;
            // What is being written is damaged until it is stable, and no later change takes the same number again.
            (self.weaker, self.raw.sequence) = (position, sequence.into());
            storage.write_at(offset, &bytes)?;
            storage.flush()?;
        }
        (self.raw, self.json, self.meta, self.damaged_copy) = (raw, json, meta, None);
        self.weaker = Position::First;
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
            weaker: Position::First,
        })
    }
}

/// A change was cut off between the copies. Whoever loses the newer one goes by the older one, and by keys that were to be erased.
fn stale(copy: &str, sequence: u64, newer: u64) -> String {
    format!("the {copy} header copy is out of date: its sequence number is {sequence}, that of the other copy {newer}")
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

/// Whether `head` begins with a header whose magic alone is lost, and holds the second copy where that says. A second copy alone is no
/// reason to take a file for LUKS: it survives below other content.
pub(crate) fn lost_its_magic(head: &[u8]) -> bool {
    let raw = |at: usize| RawHeader::ref_from_prefix(head.get(at..)?).ok().map(|(raw, _)| raw);
    let size = raw(0)
        .filter(|first| first.version.get() == 2)
        .map(|first| first.size.get());
    let second = size
        .filter(|size| SIZES.contains(size))
        .and_then(|size| raw(usize::try_from(size).ok()?));
    second.is_some_and(|second| second.magic == MAGIC_2ND && Some(second.size.get()) == size)
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
