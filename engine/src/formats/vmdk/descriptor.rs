//! The descriptor: lines of text that say what the disk consists of. Parsing and editing; no I/O.
//!
//! Source: VMware Virtual Disk Format 5.0, "The Disk DescriptorFile".

use super::layout::{MAX_DESCRIPTOR, bytes};
use crate::formats::windows::from_windows;
use crate::{Error, Limits, Result};

/// `parentCID` of a disk without a layer below.
pub(super) const NO_PARENT: u32 = u32::MAX;

/// Characters of an older text that may stand behind a descriptor: two CIDs that lost seven digits each.
const REMAINS: usize = 14;

/// How an extent may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// `RW`
    ReadWrite,
    /// `RDONLY`
    ReadOnly,
}

/// What an extent's file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExtentType {
    /// The guest's bytes as they are (`FLAT`, `VMFS`).
    Flat,
    /// A hosted sparse extent.
    Sparse,
    /// COWD.
    VmfsSparse,
    /// SESparse.
    SeSparse,
    /// No file: zeroes.
    Zero,
}

/// One line of the extent description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub access: Access,
    /// Guest bytes.
    pub len: u64,
    pub kind: ExtentType,
    /// The word for it in the descriptor.
    pub word: String,
    /// Empty for `ZERO`.
    pub name: String,
    /// First byte in the file, for flat ones.
    pub offset: u64,
    /// Number of the line in the text.
    line: usize,
}

/// A descriptor with the fields that matter picked out of its text.
#[derive(Debug, Clone)]
pub(super) struct Descriptor {
    lines: Vec<String>,
    /// The text is not UTF-8: each character of a line stands for one byte.
    bytewise: bool,
    /// What ends a line: as on Windows, or a newline alone.
    line_end: &'static str,
    pub cid: u32,
    pub parent_cid: u32,
    pub create_type: String,
    pub parent_hint: Option<String>,
    pub extents: Vec<ExtentLine>,
}

/// A byte order mark, which some editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Bytes of a file that tell whether it is a descriptor.
pub(super) const LOOKED_AT: usize = 4096;

/// Whether bytes look like the start of a descriptor file: by its first line, however that is spaced, or as QEMU tells it, by a version
/// behind comments.
pub(super) fn looks_like_descriptor(head: &[u8]) -> bool {
    let head = head.get(..LOOKED_AT).unwrap_or(head);
    let head = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head);
    let mut lines = head
        .split(|b| *b == b'\n')
        .map(|l| l.trim_ascii())
        .filter(|l| !l.is_empty());
    let first: Vec<u8> = lines
        .next()
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
    let told = first.starts_with(b"#") && lines.find(|l| !l.starts_with(b"#")).is_some_and(version);
    told && head.windows(11).any(|w| w == b"createType=")
}

/// The name of a file here: of a path with a drive letter, which is not here, the last part, which finds the file beside the descriptor.
pub(super) fn local_name(name: &str) -> String {
    match name.get(1..3) {
        Some(":\\" | ":/") => from_windows(name, false),
        _ => name.to_owned(),
    }
}

impl Descriptor {
    /// Parses a descriptor. NULs at the end are padding; more than a few characters behind them are refused.
    ///
    /// # Errors
    /// `Corrupt` that names the line, `Unsupported` for extents on raw devices, `LimitExceeded` for too many extents.
    pub fn parse(raw: &[u8], limits: &Limits) -> Result<Self> {
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
        if let Some(b) = text.iter().find(|b| **b < b' ' && !b.is_ascii_whitespace()) {
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
            Some(v) => u32::from_str_radix(v, 16)
                .map_err(|_| Error::corrupt(format!("{key} is \"{}\", expected hex digits", v.escape_debug()))),
        };
        let create_type = value(&lines, "createType")?
            .filter(|t| t.len() < 64)
            .ok_or_else(|| Error::corrupt("no createType, or one of 64 characters and more"))?;
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

    /// The text as it goes to the file, in the encoding that it was read in.
    pub fn text(&self) -> Vec<u8> {
        let mut text = self.lines.join(self.line_end);
        text.push_str(self.line_end);
        if !self.bytewise {
            return text.into_bytes();
        }
        // Nothing but bytes came in: see `can_name`.
        text.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect()
    }
    /// Whether the name of another file can stand in the text.
    pub fn can_name(&self, name: &str) -> bool {
        !self.bytewise || name.is_ascii()
    }
    pub fn set_cid(&mut self, cid: u32) {
        self.cid = cid;
        self.set("CID", &format!("{cid:08x}"));
    }
    /// Names another layer below, or none.
    pub fn set_parent(&mut self, parent: Option<(&str, u32)>) {
        let hint = parent.map(|(name, _)| name.to_owned());
        self.parent_cid = parent.map_or(NO_PARENT, |(_, cid)| cid);
        self.set("parentCID", &format!("{:08x}", self.parent_cid));
        match &hint {
            Some(name) => self.set("parentFileNameHint", &format!("\"{name}\"")),
            None => self.lines.retain(|l| key_of(l) != Some("parentFileNameHint")),
        }
        // Line numbers of the extents moved with the hint.
        if let Ok(extents) = parse_extents(
            &self.lines,
            &Limits {
                files: usize::MAX,
                ..Limits::default()
            },
        ) {
            self.extents = extents;
        }
        self.parent_hint = hint;
    }
    /// Changes the length of an extent.
    pub fn set_extent_len(&mut self, index: usize, len: u64) {
        let Some(extent) = self.extents.get_mut(index) else {
            return;
        };
        let old = (extent.len / 512).to_string();
        extent.len = len;
        if let Some(line) = self.lines.get_mut(extent.line) {
            *line = line.replacen(&old, &(len / 512).to_string(), 1);
        }
    }
    /// The geometry that belongs to the size: heads as they are, 63 sectors.
    pub fn set_cylinders(&mut self, size: u64) {
        let heads = value(&self.lines, "ddb.geometry.heads")
            .ok()
            .flatten()
            .and_then(|h| h.parse::<u64>().ok());
        let sectors = value(&self.lines, "ddb.geometry.sectors")
            .ok()
            .flatten()
            .and_then(|s| s.parse::<u64>().ok());
        if let (Some(heads @ 1..=255), Some(sectors @ 1..=63)) = (heads, sectors) {
            let cylinders = size / 512 / heads / sectors;
            self.set("ddb.geometry.cylinders", &format!("\"{cylinders}\""));
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        let new = if key.starts_with("ddb.") {
            format!("{key} = {value}")
        } else {
            format!("{key}={value}")
        };
        if let Some(line) = self.lines.iter_mut().find(|l| key_of(l) == Some(key)) {
            *line = new;
            return;
        }
        let after = self.lines.iter().position(|l| key_of(l) == Some("createType"));
        self.lines.insert(after.map_or(self.lines.len(), |i| i + 1), new);
    }
}

/// NULs, and the few characters that remain of a longer text: QEMU leaves them when a new CID has fewer digits than the old one.
fn is_padding(bytes: &[u8]) -> bool {
    let rest: Vec<u8> = bytes.iter().copied().filter(|b| *b != 0).take(REMAINS + 1).collect();
    rest.len() <= REMAINS && rest.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace())
}

fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    Some(key.trim()).filter(|k| !k.starts_with('#'))
}

/// The value of a key without its quotes. A key that stands twice is refused: readers differ in which one counts.
fn value<'a>(lines: &'a [String], key: &str) -> Result<Option<&'a str>> {
    let mut found = lines
        .iter()
        .filter(|l| key_of(l) == Some(key))
        .filter_map(|l| l.split_once('='));
    let first = found.next().map(|(_, v)| v.trim());
    if found.next().is_some() {
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

fn parse_extents(lines: &[String], limits: &Limits) -> Result<Vec<ExtentLine>> {
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

/// What a new descriptor says.
pub(super) struct NewDescriptor<'a> {
    pub cid: u32,
    pub create_type: &'a str,
    pub parent: Option<(&'a str, u32)>,
    /// Lines of the extent description.
    pub extents: &'a [String],
    pub hw_version: &'a str,
    pub tools_version: &'a str,
    pub adapter: &'a str,
    /// Virtual size in bytes.
    pub size: u64,
}

impl NewDescriptor<'_> {
    /// The text, line by line as qemu-img writes it.
    pub fn text(&self) -> String {
        let heads = if self.adapter == "ide" { 16 } else { 255 };
        let cylinders = self.size / (63 * heads * 512);
        let parent_cid = self.parent.map_or(NO_PARENT, |(_, cid)| cid);
        let hint = self
            .parent
            .map_or(String::new(), |(name, _)| format!("parentFileNameHint=\"{name}\""));
        format!(
            "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID={parent_cid:08x}\ncreateType=\"{}\"\n{hint}\n\
             # Extent description\n{}\n\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"{}\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"63\"\n\
             ddb.adapterType = \"{}\"\nddb.toolsVersion = \"{}\"\n",
            self.cid,
            self.create_type,
            self.extents.join("\n"),
            self.hw_version,
            self.adapter,
            self.tools_version,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Disk DescriptorFile\nversion=1\nCID=0000abcd\nparentCID=ffffffff\ncreateType=\"custom\"\n\
                        # Extent description\nRW 63 FLAT \"a b.vmdk\" 7\nRDONLY 10 ZERO\n";

    fn parse(text: &str) -> Result<Descriptor> {
        Descriptor::parse(text.as_bytes(), &Limits::default())
    }

    #[test]
    fn extents_are_taken_with_spaces_in_names() {
        let d = parse(TEXT).unwrap();
        let first = &d.extents[0];
        assert_eq!(
            (first.name.as_str(), first.len, first.offset),
            ("a b.vmdk", 63 * 512, 7 * 512)
        );
        assert_eq!(
            (d.extents[1].kind, d.extents[1].access),
            (ExtentType::Zero, Access::ReadOnly)
        );
    }

    #[test]
    fn a_descriptor_is_known_by_its_first_line_or_by_its_version() {
        for first in [
            "# Disk DescriptorFile",
            "#Disk DescriptorFile",
            "# DISK DESCRIPTOR FILE",
            "\u{feff}# Disk DescriptorFile",
            "\r\n# Disk DescriptorFile\r",
            "# by hand",
        ] {
            let text = TEXT.replace("# Disk DescriptorFile", first);
            assert!(looks_like_descriptor(text.as_bytes()), "{first}");
            assert_eq!(parse(&text).unwrap().extents.len(), 2, "{first}");
        }
        for text in [
            "",
            "#",
            "# Disk",
            "version=1\ncreateType=\"custom\"\n",
            "# x\nversion=1\n",
            "# x\nversion=10\ncreateType=",
        ] {
            assert!(!looks_like_descriptor(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_text_in_another_encoding_keeps_its_bytes() {
        let western = |name: &[u8], encoding: &str| {
            let text = TEXT.replace("version=1", &format!("version=1\nencoding=\"{encoding}\""));
            let (before, after) = text.split_once("a b").unwrap();
            [
                before.as_bytes(),
                name,
                after.as_bytes(),
                b"ddb.comment = \"\x80\xff\"\n",
            ]
            .concat()
        };
        let raw = western(b"caf\xe9", "windows-1252");
        let mut d = Descriptor::parse(&raw, &Limits::default()).unwrap();
        assert_eq!(d.extents[0].name, "caf\u{e9}.vmdk");
        assert_eq!(d.text(), raw);
        d.set_cid(1);
        let changed = String::from_utf8_lossy(&raw).replace("CID=0000abcd", "CID=00000001");
        assert_eq!(String::from_utf8_lossy(&d.text()), changed);
        for (name, encoding) in [(&b"caf\xe9"[..], "GBK"), (b"\x80", "windows-1252")] {
            let error = Descriptor::parse(&western(name, encoding), &Limits::default()).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Unsupported, "{error}");
        }
        assert_eq!(
            Descriptor::parse(&western(b"a b", "GBK"), &Limits::default())
                .unwrap()
                .extents[0]
                .name,
            "a b.vmdk"
        );
    }

    #[test]
    fn no_extent_is_lost_for_its_small_letters() {
        let d = parse(&TEXT.replace("RW 63 FLAT", "rw 63 flat")).unwrap();
        assert_eq!((d.extents.len(), d.extents[0].kind), (2, ExtentType::Flat));
    }

    #[test]
    fn edits_change_their_line_alone() {
        let mut d = parse(TEXT).unwrap();
        d.set_cid(1);
        d.set_parent(Some(("p.vmdk", 2)));
        d.set_extent_len(0, 64 * 512);
        let text = String::from_utf8(d.text()).unwrap();
        assert!(
            text.contains("CID=00000001\nparentCID=00000002\ncreateType=\"custom\"\nparentFileNameHint=\"p.vmdk\"\n")
        );
        assert!(text.contains("RW 64 FLAT \"a b.vmdk\" 7\nRDONLY 10 ZERO\n"));
        d.set_parent(None);
        d.set_cid(0xabcd);
        d.set_extent_len(0, 63 * 512);
        assert_eq!(d.text(), TEXT.as_bytes());
    }

    #[test]
    fn lines_that_cannot_be_meant_are_refused() {
        let long = format!("createType=\"{}\"\n", "x".repeat(64));
        for (from, to) in [
            ("createType=\"custom\"\n", ""),
            ("createType=\"custom\"\n", long.as_str()),
            (
                "createType=\"custom\"\n",
                "createType=\"custom\"\ncreateType=\"vmfs\"\n",
            ),
            ("CID=0000abcd", "CID=xyz"),
            ("RW 63 ", "RW -1 "),
            ("RW 63 ", "RW 0 "),
            ("RW 63 ", "RW 9223372036854775808 "),
            (" 7\n", " -7\n"),
            (" 7\n", " 18446744073709551615\n"),
            (" 7\n", "\n"),
            ("FLAT", "VMFSRAW"),
            ("RDONLY 10", "NOACCESS 10"),
            ("\"a b.vmdk\"", "\"\""),
            ("\"a b.vmdk\"", "a"),
            ("10 ZERO\n", "10 ZERO\n\0\x7f"),
            ("10 ZERO\n", "10 ZERO\n\0RW 1 FLAT \"x\" 0\n"),
            ("10 ZERO\n", "10 ZERO\n\x01"),
        ] {
            let text = TEXT.replace(from, to);
            assert_ne!(text, TEXT);
            assert!(parse(&text).is_err(), "{from:?} -> {to:?}");
        }
    }

    #[test]
    fn what_qemu_leaves_of_a_longer_text_is_padding() {
        assert!(parse(&format!("{TEXT}\0\n\0\0")).is_ok());
    }

    #[test]
    fn too_many_extents_are_refused() {
        let text = TEXT.to_owned() + &"RW 1 ZERO\n".repeat(20_000);
        assert_eq!(parse(&text).unwrap_err().kind(), crate::ErrorKind::LimitExceeded);
    }
}
