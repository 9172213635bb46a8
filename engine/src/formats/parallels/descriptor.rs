//! `DiskDescriptor.xml` of a bundle: which files hold which sectors, and which snapshot lies over which.
//!
//! Source: QEMU's docs/interop/prl-xml, libphdi's description of the Parallels hard disk format.

use roxmltree::Node;

use crate::formats::xml::{self, child, elements};
use crate::{Error, Limits, Result};

/// Bytes of a descriptor at most; real ones have a few thousand.
pub(super) const MAX_LEN: u64 = 4 << 20;
const ROOT: &str = "Parallels_disk_image";
/// The current state, where the descriptor does not name it.
const DEFAULT_TOP: &str = "5fbaabe3-6958-40ff-92a7-860e329aab41";
const NIL: &str = "00000000-0000-0000-0000-000000000000";

/// How the file of an image holds its sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An expandable image.
    Expandable,
    /// The guest's bytes as they are.
    Plain,
}

/// The file that holds one storage's sectors of one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageFile {
    guid: String,
    pub kind: Kind,
    /// A name inside the bundle's folder.
    pub name: String,
}

/// A range of the disk with its files, the current state's first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// First byte.
    pub start: u64,
    pub len: u64,
    pub layers: Vec<ImageFile>,
}

/// A descriptor whose numbers and names are good.
#[derive(Debug)]
pub(super) struct Descriptor {
    /// Bytes that the guest sees.
    pub size: u64,
    /// Neighbours in order, from 0 on.
    pub parts: Vec<Part>,
    /// The states from the current one down, by their GUIDs.
    pub states: Vec<String>,
}

/// Whether the first bytes of a file are those of a descriptor.
pub(super) fn looks_like_descriptor(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let near = head.get(..head.len().min(4096)).unwrap_or_default();
    let root = [b"<", ROOT.as_bytes()].concat();
    near.first() == Some(&b'<') && near.windows(root.len()).any(|w| w == root)
}

impl Descriptor {
    /// Parses a descriptor.
    ///
    /// # Errors
    /// `Corrupt` that names the element, `Unsupported` for encrypted disks and other sectors than 512 bytes, `LimitExceeded` for more files
    /// or snapshots than are allowed.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self> {
        let document = xml::parse(bytes, "disk descriptor")?;
        let root = document.root_element();
        if !root.has_tag_name(ROOT) {
            return Err(Error::not_this_format(format!("expected a {ROOT} element")));
        }
        let parameters = need(root, "Disk_Parameters")?;
        check_parameters(parameters)?;
        let states = states(root, limits)?;
        let listed = child(root, "Snapshots").is_some_and(|l| child(l, "Shot").is_some());
        let storages = elements(need(root, "StorageData")?).filter(|n| n.has_tag_name("Storage"));
        let mut parts = Vec::new();
        let mut files = 0;
        for node in storages {
            let images = elements(node).filter(|n| n.has_tag_name("Image")).count();
            files += images;
            if files > limits.files {
                return Err(Error::limit(format!("the bundle has more than {} files", limits.files)));
            }
            if images > 1 && !listed {
                return Err(Error::corrupt(
                    "a Storage has several Images, but no Shot says how they lie over each other",
                ));
            }
            parts.push(part(node, &states)?);
        }
        let end = check_neighbours(&mut parts)?;
        let size = match child(parameters, "Disk_size") {
            Some(_) => sectors(parameters, "Disk_size")?,
            None => end,
        };
        if size > end {
            return Err(Error::corrupt(format!(
                "Disk_size is {size} bytes, the storages end at {end}"
            )));
        }
        Ok(Self { size, parts, states })
    }
}

fn need<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Result<Node<'a, 'i>> {
    let parent = node.tag_name().name().to_owned();
    child(node, name).ok_or_else(|| Error::corrupt(format!("{parent} has no {name}")).at("disk descriptor"))
}

fn text<'a>(node: Node<'a, '_>, name: &str) -> Result<&'a str> {
    Ok(need(node, name)?.text().unwrap_or_default().trim())
}

/// A count of sectors as bytes.
fn sectors(node: Node<'_, '_>, name: &str) -> Result<u64> {
    let found = text(node, name)?;
    let bytes = found.parse::<u64>().ok().and_then(|n| n.checked_mul(512));
    bytes.filter(|b| i64::try_from(*b).is_ok()).ok_or_else(|| {
        let found = found.escape_debug();
        Error::corrupt(format!("{name} is \"{found}\", expected a number of sectors")).at("disk descriptor")
    })
}

/// A GUID without braces, in small letters.
fn guid(node: Node<'_, '_>, name: &str) -> Result<String> {
    let found = text(node, name)?;
    let inner = found
        .strip_prefix('{')
        .and_then(|g| g.strip_suffix('}'))
        .unwrap_or(found);
    let parsed = uuid::Uuid::try_parse(inner).map_err(|_| {
        let found = found.escape_debug();
        Error::corrupt(format!("{name} is \"{found}\", expected a GUID")).at("disk descriptor")
    })?;
    Ok(parsed.to_string())
}

fn check_parameters(parameters: Node<'_, '_>) -> Result<()> {
    if let Some(size) = child(parameters, "LogicSectorSize")
        .and_then(|n| n.text())
        .map(str::trim)
        && size != "512"
    {
        let size = size.escape_debug();
        return Err(Error::unsupported(format!("a bundle with sectors of {size} bytes")));
    }
    if let Some(padding) = child(parameters, "Padding").and_then(|n| n.text()).map(str::trim)
        && padding != "0"
    {
        let padding = padding.escape_debug();
        return Err(Error::unsupported(format!("a bundle with Padding {padding}")));
    }
    let engine = child(parameters, "Encryption").filter(|e| child(*e, "Engine").is_some());
    match engine.map(|e| guid(e, "Engine")).transpose()? {
        Some(engine) if engine != NIL => Err(Error::unsupported(format!("the bundle is encrypted (engine {engine})"))),
        _ => Ok(()),
    }
}

/// The current state and what it was made over, as the list of snapshots has it.
fn states(root: Node<'_, '_>, limits: &Limits) -> Result<Vec<String>> {
    let Some(list) = child(root, "Snapshots") else {
        return Ok(vec![DEFAULT_TOP.to_owned()]);
    };
    let mut shots = Vec::new();
    for shot in elements(list).filter(|n| n.has_tag_name("Shot")) {
        shots.push((guid(shot, "GUID")?, guid(shot, "ParentGUID")?));
    }
    let top = match child(list, "TopGUID") {
        Some(_) => guid(list, "TopGUID")?,
        None => DEFAULT_TOP.to_owned(),
    };
    let mut states = vec![top];
    while let Some(last) = states.last() {
        let mut found = shots.iter().filter(|(guid, _)| guid == last);
        let parent = match (found.next(), found.next()) {
            (Some((_, parent)), None) => parent,
            (None, _) if states.len() == 1 && shots.is_empty() => break,
            (None, _) => return Err(Error::corrupt(format!("no Shot describes the state {last}"))),
            (Some(_), Some(_)) => return Err(Error::corrupt(format!("two Shots describe the state {last}"))),
        };
        if parent == NIL {
            break;
        }
        if states.contains(parent) {
            return Err(Error::corrupt(format!("the state {parent} lies over itself")));
        }
        if states.len() >= limits.chain_depth {
            let limit = limits.chain_depth;
            return Err(Error::limit(format!(
                "the bundle has more than {limit} states over each other"
            )));
        }
        states.push(parent.clone());
    }
    Ok(states)
}

fn part(node: Node<'_, '_>, states: &[String]) -> Result<Part> {
    let (start, end) = (sectors(node, "Start")?, sectors(node, "End")?);
    if end <= start {
        return Err(Error::corrupt(format!(
            "a Storage ends at byte {end:#x} and starts at {start:#x}"
        )));
    }
    let mut images = Vec::new();
    for image in elements(node).filter(|n| n.has_tag_name("Image")) {
        images.push(image_file(image)?);
    }
    let layer = |state: &String| {
        let mut found = images.iter().filter(|i| i.guid == *state);
        match (found.next(), found.next()) {
            (Some(image), None) => Ok(image.clone()),
            (None, _) => Err(Error::corrupt(format!(
                "the Storage at byte {start:#x} has no Image of the state {state}"
            ))),
            (Some(_), Some(_)) => Err(Error::corrupt(format!(
                "the Storage at byte {start:#x} has two Images of the state {state}"
            ))),
        }
    };
    let layers = states.iter().map(layer).collect::<Result<Vec<_>>>()?;
    if let Some(covered) = layers.iter().rev().skip(1).find(|l| l.kind == Kind::Plain) {
        let name = covered.name.escape_debug();
        return Err(Error::corrupt(format!(
            "the Plain image \"{name}\" lies over another state"
        )));
    }
    Ok(Part {
        start,
        len: end - start,
        layers,
    })
}

fn image_file(node: Node<'_, '_>) -> Result<ImageFile> {
    let kind = match text(node, "Type")? {
        "Compressed" => Kind::Expandable,
        "Plain" => Kind::Plain,
        other => {
            let other = other.escape_debug();
            return Err(Error::unsupported(format!("an Image of Type \"{other}\"")));
        }
    };
    Ok(ImageFile {
        guid: guid(node, "GUID")?,
        kind,
        name: inside(text(node, "File")?)?.to_owned(),
    })
}

/// The name of a file in the bundle's own folder. A bundle that was moved may hold absolute names: their last part counts.
fn inside(name: &str) -> Result<&str> {
    let last = match name.strip_prefix('/') {
        Some(path) => path.rsplit('/').next().unwrap_or_default(),
        None => name,
    };
    let bad = last.is_empty() || last == "." || last == ".." || last.len() > 255;
    if bad || last.contains(|c: char| matches!(c, '/' | '\\') || c.is_control()) {
        let name = name.escape_debug();
        return Err(Error::corrupt(format!(
            "File is \"{name}\", expected a name inside the bundle's folder"
        )));
    }
    Ok(last)
}

/// The end of the last storage, after each was found to begin where the one before ends.
fn check_neighbours(parts: &mut [Part]) -> Result<u64> {
    parts.sort_by_key(|p| p.start);
    let mut end = 0;
    for part in parts.iter() {
        if part.start != end {
            let start = part.start;
            return Err(Error::corrupt(format!(
                "a Storage starts at byte {start:#x}, expected {end:#x}"
            )));
        }
        end = part.start + part.len;
    }
    if parts.is_empty() {
        return Err(Error::corrupt("StorageData has no Storage"));
    }
    Ok(end)
}

#[cfg(test)]
#[path = "descriptor_tests.rs"]
mod tests;
