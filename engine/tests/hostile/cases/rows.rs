//! Cases as rows: a number in a file and the values that it is set to.

use vdisk_engine::storage::MemoryStorage;

use super::{Case, Verdict};
use crate::inputs::seal;
use crate::samples::sample;

/// One field.
pub struct Row {
    /// Number in the catalogue.
    pub number: u8,
    /// The field's name.
    pub field: &'static str,
    /// Where it is; negative from the end.
    pub at: i64,
    /// Its bytes.
    pub width: usize,
    /// What it is set to.
    pub values: &'static [u64],
    /// What must come of each.
    pub verdict: Verdict,
}

/// A row.
pub const fn row(
    number: u8,
    field: &'static str,
    at: i64,
    width: usize,
    values: &'static [u64],
    verdict: Verdict,
) -> Row {
    Row {
        number,
        field,
        at,
        width,
        values,
        verdict,
    }
}

/// Puts a number into a file.
pub fn put(bytes: &mut [u8], at: i64, width: usize, value: u64, big_endian: bool) {
    let at = usize::try_from(at).unwrap_or_else(|_| bytes.len() - at.unsigned_abs() as usize);
    let place = &mut bytes[at..at + width];
    place.copy_from_slice(&value.to_be_bytes()[8 - width..]);
    if !big_endian {
        place.reverse();
    }
}

/// Puts checksums right.
pub fn sealed(format: &str, bytes: Vec<u8>) -> Vec<u8> {
    let storage = MemoryStorage::new("sealed", bytes);
    seal::seal(format, &storage);
    storage.contents()
}

/// The cases of rows, each a change of `good`.
pub fn of(format: &'static str, big_endian: bool, good: &[u8], rows: &[Row]) -> Vec<Case> {
    let mut cases = Vec::new();
    for row in rows {
        for value in row.values {
            let mut bytes = good.to_vec();
            put(&mut bytes, row.at, row.width, *value, big_endian);
            cases.push(Case {
                number: row.number,
                what: format!("{} = {value:#x}", row.field),
                format,
                file: sealed(format, bytes).into(),
                verdict: row.verdict,
            });
        }
    }
    cases
}

/// The cases of rows over the sample of a format.
pub fn of_sample(format: &'static str, big_endian: bool, rows: &[Row]) -> Vec<Case> {
    of(format, big_endian, &sample(format), rows)
}

/// One image made otherwise.
pub fn case(number: u8, format: &'static str, what: impl Into<String>, bytes: Vec<u8>, verdict: Verdict) -> Case {
    Case {
        number,
        what: what.into(),
        format,
        file: sealed(format, bytes).into(),
        verdict,
    }
}
