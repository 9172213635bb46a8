//! Folder entries: short names, long names, times. Source: Microsoft's FAT specification (fatgen103).

use std::collections::{HashMap, HashSet};

use crate::{Error, Result};

/// Bytes of an entry.
pub(super) const ENTRY: usize = 32;
const FOLDER: u8 = 0x10;
const ARCHIVE: u8 = 0x20;
const LABEL: u8 = 0x08;
const LONG: u8 = 0x0f;
/// UTF-16 units of a long name in one entry, and in all.
const UNITS: usize = 13;
const MAX_UNITS: usize = 255;

/// What an entry says beside its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub is_folder: bool,
    pub cluster: u32,
    pub size: u32,
    /// Seconds since 1970.
    pub mtime: i64,
}

/// The short names of one folder.
#[derive(Default)]
pub(super) struct ShortNames {
    taken: HashSet<[u8; 11]>,
    /// The number of so many digits to try next behind a head: lower ones are taken.
    next: HashMap<(u32, [u8; 11]), u32>,
    #[cfg(test)]
    tries: u64,
}

impl ShortNames {
    /// A short name that nobody in the folder has; and whether the long one must be kept beside it.
    pub(super) fn make(&mut self, name: &str) -> Result<([u8; 11], bool)> {
        let trimmed = name.trim_start_matches('.');
        let (stem, extension) = match trimmed.rsplit_once('.') {
            Some((stem, extension)) if !stem.is_empty() => (stem, extension),
            _ => (trimmed, ""),
        };
        let (stem, extension) = (clean(stem), clean(extension));
        let plain = field(&stem, &extension);
        let exact = format!("{stem}{}{extension}", if extension.is_empty() { "" } else { "." }) == name
            && stem.len() <= 8
            && extension.len() <= 3
            && !stem.is_empty();
        if exact && self.taken.insert(plain) {
            return Ok((plain, false));
        }
        let found = (1..=6).find_map(|digits| self.numbered(&stem, &extension, digits));
        found
            .map(|short| (short, true))
            .ok_or_else(|| Error::limit("too many similar names in one folder"))
    }

    /// The first free name with a number of so many digits; `None` where all are taken.
    fn numbered(&mut self, stem: &str, extension: &str, digits: u32) -> Option<[u8; 11]> {
        let head: String = stem.chars().take(7 - digits as usize).collect();
        let next = self
            .next
            .entry((digits, field(&head, extension)))
            .or_insert(10u32.pow(digits - 1));
        while *next < 10u32.pow(digits) {
            let short = field(&format!("{head}~{next}"), extension);
            *next += 1;
            #[cfg(test)]
            {
                self.tries += 1;
            }
            if self.taken.insert(short) {
                return Some(short);
            }
        }
        None
    }
}

/// Upper case, with `_` for what a short name cannot have; spaces and dots go.
fn clean(part: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || "!#$%&'()-@^_`{}~".contains(c);
    part.chars()
        .filter(|c| !matches!(c, ' ' | '.'))
        .map(|c| if keep(c) { c.to_ascii_uppercase() } else { '_' })
        .collect()
}

fn field(stem: &str, extension: &str) -> [u8; 11] {
    let mut field = [b' '; 11];
    let (head, tail) = field.split_at_mut(8);
    head.iter_mut().zip(stem.bytes()).for_each(|(to, from)| *to = from);
    tail.iter_mut().zip(extension.bytes()).for_each(|(to, from)| *to = from);
    field
}

/// The entries of one name: those of the long name, where it is needed, then the short one.
pub(super) fn entries(name: &str, short: &[u8; 11], long: bool, facts: &Facts) -> Result<Vec<u8>> {
    let mut out = if long { long_entries(name, short)? } else { Vec::new() };
    out.extend(short_entry(
        short,
        if facts.is_folder { FOLDER } else { ARCHIVE },
        facts,
    ));
    Ok(out)
}

/// The volume label of a root folder.
pub(super) fn label_entry(label: &str, mtime: i64) -> [u8; ENTRY] {
    let mut name = [b' '; 11];
    name.iter_mut().zip(label.bytes()).for_each(|(to, from)| *to = from);
    let facts = Facts {
        is_folder: false,
        cluster: 0,
        size: 0,
        mtime,
    };
    short_entry(&name, LABEL, &facts)
}

/// One short entry.
pub(super) fn short_entry(name: &[u8; 11], attributes: u8, facts: &Facts) -> [u8; ENTRY] {
    let (date, time) = dos_time(facts.mtime);
    let [c0, c1, c2, c3] = facts.cluster.to_le_bytes();
    let mut entry = [0; ENTRY];
    let parts: [(usize, &[u8]); 9] = [
        (0, name),
        (11, &[attributes]),
        (14, &time.to_le_bytes()),
        (16, &date.to_le_bytes()),
        (18, &date.to_le_bytes()),
        (20, &[c2, c3]),
        (22, &time.to_le_bytes()),
        (24, &date.to_le_bytes()),
        (26, &[c0, c1]),
    ];
    for (at, bytes) in parts {
        put(&mut entry, at, bytes);
    }
    put(&mut entry, 28, &facts.size.to_le_bytes());
    entry
}

/// Copies bytes into a buffer that has room for them.
pub(super) fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = to.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn long_entries(name: &str, short: &[u8; 11]) -> Result<Vec<u8>> {
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if units.len() > MAX_UNITS {
        return Err(Error::unsupported(format!(
            "the name \"{}\" is too long for FAT",
            name.escape_debug()
        )));
    }
    if !units.len().is_multiple_of(UNITS) {
        units.push(0);
    }
    units.resize(units.len().next_multiple_of(UNITS), 0xffff);
    let sum = short.iter().fold(0u8, |sum, b| sum.rotate_right(1).wrapping_add(*b));
    let count = units.len() / UNITS;
    let mut out = Vec::with_capacity(count * ENTRY);
    for (number, part) in units.chunks(UNITS).enumerate().rev() {
        let order = u8::try_from(number + 1).unwrap_or(0) | if number + 1 == count { 0x40 } else { 0 };
        let bytes: Vec<u8> = part.iter().flat_map(|u| u.to_le_bytes()).collect();
        let mut entry = [0; ENTRY];
        put(&mut entry, 0, &[order]);
        put(&mut entry, 1, bytes.get(..10).unwrap_or_default());
        put(&mut entry, 11, &[LONG, 0, sum]);
        put(&mut entry, 14, bytes.get(10..22).unwrap_or_default());
        put(&mut entry, 28, bytes.get(22..26).unwrap_or_default());
        out.extend(entry);
    }
    Ok(out)
}

/// Date and time of an entry (UTC), from 1980 to 2107.
fn dos_time(seconds: i64) -> (u16, u16) {
    let seconds = seconds.clamp(315_532_800, 4_354_819_198);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days, with years that begin in March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let date = (year - 1980) << 9 | month << 5 | day_of_month;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let time = hour << 11 | minute << 5 | (second / 2);
    (u16::try_from(date).unwrap_or(0x21), u16::try_from(time).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_unique_and_kept_where_they_suffice() {
        let mut names = ShortNames::default();
        let mut make = |name| {
            let (short, long) = names.make(name).unwrap();
            (String::from_utf8(short.to_vec()).unwrap(), long)
        };
        assert_eq!(make("README.TXT"), ("README  TXT".to_owned(), false));
        assert_eq!(make("readme.txt"), ("README~1TXT".to_owned(), true));
        assert_eq!(make("a long name.tar.gz"), ("ALONGN~1GZ ".to_owned(), true));
        assert_eq!(make("a long notes.tar.gz"), ("ALONGN~2GZ ".to_owned(), true));
        assert_eq!(make(".profile"), ("PROFIL~1   ".to_owned(), true));
        assert_eq!(make("été"), ("_T_~1      ".to_owned(), true));
    }

    #[test]
    fn similar_names_are_not_all_tried_again_for_each() {
        let mut names = ShortNames::default();
        let mut last = String::new();
        for number in 0..12_000 {
            let (short, _) = names.make(&format!("similar name {number}.text")).unwrap();
            last = String::from_utf8(short.to_vec()).unwrap();
        }
        assert_eq!(last, "SI~12000TEX");
        assert_eq!(names.taken.len(), 12_000);
        assert!(names.tries <= 12_000, "{} tries", names.tries);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        // 2024-02-29 13:37:42 UTC, and the two ends.
        assert_eq!(
            dos_time(1_709_213_862),
            (44 << 9 | 2 << 5 | 29, 13 << 11 | 37 << 5 | 21)
        );
        assert_eq!(dos_time(0), (1 << 5 | 1, 0));
        assert_eq!(dos_time(i64::MAX).0 >> 9, 127);
    }
}
