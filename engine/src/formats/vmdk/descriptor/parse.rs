//! Reading a descriptor's text.

use super::super::layout::{MAX_DESCRIPTOR, bytes};
use super::{Access, Descriptor, ExtentLine, ExtentType, NO_PARENT};
use crate::{Error, Limits, Result};

/// Characters of an older text that may stand behind a descriptor: two CIDs that lost seven digits each.
const REMAINS: usize = 14;

/// A byte order mark, which some editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Bytes of a file that tell whether it is a descriptor.
pub(in crate::formats::vmdk) const LOOKED_AT: usize = 4096;

/// Whether bytes look like the start of a descriptor file: by its first line, however that is spaced, or as QEMU tells it, by a version as
/// the first line or behind comments.
pub(in crate::formats::vmdk) fn looks_like_descriptor(head: &[u8]) -> bool {
    let head = head.get(..LOOKED_AT).unwrap_or(head);
    let head = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head);
    let mut lines = head
        .split(|b| *b == b'\n')
        .map(|l| l.trim_ascii())
        .filter(|l| !l.is_empty())
        .peekable();
    let first: Vec<u8> = lines
        .peek()
        .copied()
        .unwrap_or_default()
        .iter()
        .filter(|b| **b != b' ')
        .copied()
        .collect();
    if first
        .get(..19)
        .is_some_and(|t| t.eq_ignore_ascii_case(b"#DiskDescriptorFile"))
    {
        return true;
    }
    let version = |line: &[u8]| [&b"version=1"[..], b"version=2", b"version=3"].contains(&line);
    let begins = first.starts_with(b"#") || head.starts_with(b"version=");
    let told = begins && lines.find(|l| !l.starts_with(b"#")).is_some_and(version);
    told && text_of(head).windows(11).any(|w| w == b"createType=")
}

/// Whether the start of a file that is said to be a VMDK may be a descriptor's, whatever its first lines are.
pub(in crate::formats::vmdk) fn may_be_descriptor(head: &[u8]) -> bool {
    text_of(head).windows(10).any(|w| w == b"createType")
}

/// What is before the first NUL.
fn text_of(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

impl Descriptor {
    /// Parses a descriptor file. NULs at the end are padding; more than a few characters behind them are refused.
    ///
    /// # Errors
    /// `Corrupt` that names the line, `Unsupported` for extents on raw devices, `LimitExceeded` for too many extents.
    pub fn parse(raw: &[u8], limits: &Limits) -> Result<Self> {
        let found = Self::parse_embedded(raw, limits)?;
        if found.create_type.is_empty() {
            return Err(Error::corrupt("the descriptor has no createType"));
        }
        Ok(found)
    }

    /// The same for the descriptor in an extent, whose header says all that is needed to read it: it may leave out the type.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_embedded(raw: &[u8], limits: &Limits) -> Result<Self> {
        if raw.len() as u64 > MAX_DESCRIPTOR {
            return Err(Error::limit(format!(
                "a descriptor of {} bytes; at most 1 MiB is read",
                raw.len()
            )));
        }
        let raw = raw.strip_prefix(BYTE_ORDER_MARK).unwrap_or(raw);
        let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
        let (text, padding) = raw.split_at(end);
        if !is_padding(padding) {
            return Err(Error::corrupt("the descriptor's text is followed by other data"));
        }
        if let Some(b) = stray_byte(text) {
            return Err(Error::corrupt(format!("the descriptor's text holds the byte {b:#04x}")));
        }
        let (text, bytewise) = match std::str::from_utf8(text) {
            Ok(text) => (text.to_owned(), false),
            Err(_) => (text.iter().copied().map(char::from).collect(), true),
        };
        let windows = text.split_inclusive('\n').next().is_some_and(|l| l.ends_with("\r\n"));
        let lines: Vec<String> = text
            .lines()
            .map(|l| l.trim_end_matches([' ', '\t', '\r']).to_owned())
            .collect();
        let extents = parse_extents(&lines, limits)?;
        if bytewise {
            for name in extents.iter().map(|e| &e.name) {
                readable(name, &lines)?;
            }
        }
        let hex = |key, default| match value(&lines, key)? {
            None => Ok(default),
            Some(v) => u32::from_str_radix(v.strip_prefix("0x").unwrap_or(v), 16)
                .map_err(|_| Error::corrupt(format!("{key} is \"{}\", expected hex digits", v.escape_debug()))),
        };
        let create_type = value(&lines, "createType")?.unwrap_or_default();
        if create_type.len() >= 64 {
            return Err(Error::corrupt("a createType of 64 characters and more"));
        }
        let hint = value(&lines, "parentFileNameHint")?.filter(|h| !h.is_empty());
        Ok(Self {
            cid: hex("CID", 0)?,
            parent_cid: hex("parentCID", NO_PARENT)?,
            create_type: create_type.to_owned(),
            parent_hint: match hint {
                Some(hint) if bytewise => Some(readable(hint, &lines)?),
                hint => hint.map(str::to_owned),
            },
            extents,
            bytewise,
            line_end: if windows { "\r\n" } else { "\n" },
            lines,
        })
    }
}

/// A control byte where it can be of a name or a number: not in a comment, nor as white space.
fn stray_byte(text: &[u8]) -> Option<u8> {
    let lines = text.split(|b| *b == b'\n').map(|l| l.trim_ascii_start());
    let mut told = lines.filter(|l| !l.starts_with(b"#")).flatten();
    told.find(|b| **b < b' ' && !b.is_ascii_whitespace() && **b != b'\x0b')
        .copied()
}

/// NULs, and the few characters that remain of a longer text: QEMU leaves them when a new CID has fewer digits than the old one.
fn is_padding(bytes: &[u8]) -> bool {
    let rest: Vec<u8> = bytes.iter().copied().filter(|b| *b != 0).take(REMAINS + 1).collect();
    rest.len() <= REMAINS && rest.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace())
}

pub(super) fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    Some(key.trim()).filter(|k| !k.starts_with('#'))
}

/// The value of a key without its quotes. A key that stands twice with different values is refused: readers differ in which one counts.
pub(super) fn value<'a>(lines: &'a [String], key: &str) -> Result<Option<&'a str>> {
    let mut found = lines
        .iter()
        .filter(|l| key_of(l) == Some(key))
        .filter_map(|l| l.split_once('='));
    let first = found.next().map(|(_, v)| v.trim());
    if found.any(|(_, v)| Some(v.trim()) != first) {
        return Err(Error::corrupt(format!("the descriptor has {key} twice")));
    }
    Ok(first.map(|v| v.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(v)))
}

/// A file name of a text that is not UTF-8: told only where the descriptor says that it is Western, and of what all such encodings share.
fn readable(name: &str, lines: &[String]) -> Result<String> {
    let encoding = value(lines, "encoding")?.unwrap_or_default().to_ascii_lowercase();
    let western = ["windows-1252", "iso-8859-1"].contains(&encoding.as_str());
    let clear = |c: char| c.is_ascii() || western && c >= '\u{a0}';
    if name.chars().all(clear) {
        return Ok(name.to_owned());
    }
    let shown = name.escape_debug();
    Err(Error::unsupported(format!("the file name \"{shown}\" is in an encoding that is not known")).at("descriptor"))
}

pub(super) fn parse_extents(lines: &[String], limits: &Limits) -> Result<Vec<ExtentLine>> {
    let mut extents = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let word = line.split_whitespace().next().map(str::to_ascii_uppercase);
        let access = match word.as_deref() {
            Some("RW") => Access::ReadWrite,
            Some("RDONLY") => Access::ReadOnly,
            Some("NOACCESS") => {
                return Err(
                    Error::unsupported("an extent without access").at(format!("descriptor line {}", number + 1))
                );
            }
            _ => continue,
        };
        if extents.len() >= limits.files {
            return Err(Error::limit(format!(
                "the descriptor names more than {} extents",
                limits.files
            )));
        }
        let extent = parse_extent(line, access, number).map_err(|e| e.at(format!("descriptor line {}", number + 1)))?;
        extents.push(extent);
    }
    Ok(extents)
}

fn parse_extent(line: &str, access: Access, number: usize) -> Result<ExtentLine> {
    let invalid = || Error::corrupt(format!("Invalid extent line: {}", line.escape_debug()));
    let mut words = line.split_whitespace().skip(1);
    let sectors = words
        .next()
        .and_then(|w| w.parse::<u64>().ok())
        .filter(|s| *s > 0)
        .ok_or_else(invalid)?;
    let word = words.next().ok_or_else(invalid)?.to_ascii_uppercase();
    let kind = match word.as_str() {
        "FLAT" | "VMFS" => ExtentType::Flat,
        "SPARSE" => ExtentType::Sparse,
        "VMFSSPARSE" => ExtentType::VmfsSparse,
        "SESPARSE" => ExtentType::SeSparse,
        "ZERO" => ExtentType::Zero,
        other => return Err(Error::unsupported(format!("extents of type {}", other.escape_debug()))),
    };
    let (name, rest) = match line.split_once('"') {
        Some((_, rest)) => rest.split_once('"').ok_or_else(invalid)?,
        None if kind == ExtentType::Zero => ("", ""),
        None => return Err(invalid()),
    };
    let rest = rest.split_whitespace().next();
    let offset = match (rest, kind) {
        // Programs that stop at the first character that is no digit read this as 0, too.
        (Some("0x0"), ExtentType::Flat) => 0,
        (Some(o), ExtentType::Flat) => o.parse::<u64>().map_err(|_| invalid())?,
        (None, ExtentType::Flat) if word == "FLAT" => return Err(invalid()),
        (Some(o), ExtentType::Sparse | ExtentType::VmfsSparse | ExtentType::SeSparse) if o != "0" => {
            return Err(invalid());
        }
        _ => 0,
    };
    if name.is_empty() && kind != ExtentType::Zero {
        return Err(invalid());
    }
    Ok(ExtentLine {
        access,
        len: bytes("extent size", sectors)?,
        kind,
        word,
        name: name.to_owned(),
        offset: bytes("extent offset", offset)?,
        line: number,
    })
}
