//! Creating, with qemu-img's layout for all subformats but streamOptimized, which is a true stream here.

use zerocopy::IntoBytes;

use super::descriptor::NewDescriptor;
use super::layout::{GD_AT_END, GRAIN_SECTORS, MAX_DESCRIPTOR, NewHeader, SECTOR, TABLE_ENTRIES};
use super::meta::{cid_of, safe_name};
use super::open;
use super::stream::tail;
use crate::env::CreateSpec;
use crate::formats::common::check_table;
use crate::gate::{Reference, Role};
use crate::options::Options;
use crate::{CreateEnv, Error, OpenEnv, Result, StorageRef};

/// Guest bytes of an extent in the split subformats.
const SPLIT: u64 = 2 << 30;
/// Sectors of the embedded descriptor.
const DESCRIPTOR_SECTORS: u64 = 20;
/// Bytes of a grain table.
pub(super) const TABLE_BYTES: u64 = TABLE_ENTRIES * 4;

/// What the subformat option says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subformat {
    pub name: &'static str,
    pub flat: bool,
    pub split: bool,
    pub stream: bool,
}

const SUBFORMATS: &[Subformat] = &[
    Subformat {
        name: "monolithicSparse",
        flat: false,
        split: false,
        stream: false,
    },
    Subformat {
        name: "monolithicFlat",
        flat: true,
        split: false,
        stream: false,
    },
    Subformat {
        name: "twoGbMaxExtentSparse",
        flat: false,
        split: true,
        stream: false,
    },
    Subformat {
        name: "twoGbMaxExtentFlat",
        flat: true,
        split: true,
        stream: false,
    },
    Subformat {
        name: "streamOptimized",
        flat: false,
        split: false,
        stream: true,
    },
];

impl Subformat {
    pub fn from(options: &Options) -> Result<Self> {
        let wanted = options.get("subformat").unwrap_or("monolithicSparse");
        let found = SUBFORMATS.iter().find(|s| s.name == wanted).copied();
        found.ok_or_else(|| Error::invalid(format!("Invalid subformat '{wanted}'")))
    }
    /// Whether the main file is the extent.
    pub fn embedded(self) -> bool {
        !self.flat && !self.split
    }
    /// What the name of an extent's file has behind the image's own.
    pub fn suffix(self, number: u64) -> String {
        match (self.split, self.flat) {
            (false, _) => "flat".to_owned(),
            (true, true) => format!("f{:03}", number + 1),
            (true, false) => format!("s{:03}", number + 1),
        }
    }
    /// An extent's line in the descriptor.
    pub fn line(self, len: u64, name: &str) -> String {
        let (word, offset) = if self.flat { ("FLAT", " 0") } else { ("SPARSE", "") };
        format!("RW {} {word} \"{name}\"{offset}", len / SECTOR)
    }
    /// Guest bytes of each extent but the last.
    pub fn extent_len(self, size: u64) -> u64 {
        if self.split { SPLIT } else { size.max(1) }
    }
}

/// Sectors of the parts of a sparse extent.
#[derive(Debug, Clone, Copy)]
pub(super) struct SparsePlan {
    sectors: u64,
    pub tables: u64,
    redundant: u64,
    directory: u64,
    pub overhead: u64,
}

impl SparsePlan {
    pub fn new(len: u64) -> Result<Self> {
        let sectors = len / SECTOR;
        let tables = sectors.div_ceil(GRAIN_SECTORS * TABLE_ENTRIES);
        let directory_sectors = (tables * 4).div_ceil(SECTOR);
        let both = directory_sectors + tables * (TABLE_BYTES / SECTOR);
        let redundant = 1 + DESCRIPTOR_SECTORS;
        let overhead = (redundant + 2 * both).next_multiple_of(GRAIN_SECTORS);
        if u32::try_from(overhead).is_err() {
            return Err(Error::invalid(format!(
                "a virtual size of {len} bytes is too large for a sparse VMDK"
            )));
        }
        Ok(Self {
            sectors,
            tables,
            redundant,
            directory: redundant + both,
            overhead,
        })
    }
    fn header(&self, zero_grains: bool) -> NewHeader {
        NewHeader {
            sectors: self.sectors,
            descriptor_sectors: DESCRIPTOR_SECTORS,
            redundant: self.redundant,
            directory: self.directory,
            overhead: self.overhead,
            compressed: false,
            zero_grains,
        }
    }
    /// A directory at a sector with its tables behind it.
    fn directory(&self, at: u64) -> Vec<u8> {
        let first = at + (self.tables * 4).div_ceil(SECTOR);
        let place = |n| u32::try_from(first + n * (TABLE_BYTES / SECTOR)).unwrap_or(u32::MAX); // Below `overhead`.
        (0..self.tables).flat_map(|n| place(n).to_le_bytes()).collect()
    }
}

pub(super) fn create(main: &StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
    let (options, kind) = (&spec.options, Subformat::from(&spec.options)?);
    let zero_grains = options.flag("zeroed_grain")?.unwrap_or(false);
    if kind.flat && zero_grains {
        return Err(Error::invalid("Flat image can't enable zeroed grain"));
    }
    if kind.flat && spec.backing.is_some() {
        return Err(Error::invalid("Flat image can't have backing file"));
    }
    let hw_version = hw_version(options)?;
    let size = spec
        .virtual_size
        .checked_next_multiple_of(SECTOR)
        .filter(|s| *s <= env.limits.virtual_size)
        .ok_or_else(|| Error::invalid(format!("a virtual size of {} bytes is too large", spec.virtual_size)))?;
    if size == 0 {
        return Err(Error::invalid(
            "a VMDK has at least one sector; a size of 0 was asked for",
        ));
    }
    let parent = spec
        .backing
        .as_ref()
        .map(|b| parent_cid(main, b, env).map(|cid| (b.name.clone(), cid)))
        .transpose()?;
    let stem = Stem::of(main.name())?;
    if !kind.flat {
        let plan = SparsePlan::new(kind.extent_len(size).min(size))?;
        check_table("the grain directory", plan.tables * 4, env.limits)?;
    }
    let lines = extents(main, kind, size, zero_grains, &stem, env)?;
    let mut cid = [0; 4];
    (env.random)(&mut cid);
    let text = NewDescriptor {
        cid: u32::from_le_bytes(cid).clamp(1, u32::MAX - 2),
        create_type: kind.name,
        parent: parent.as_ref().map(|(name, cid)| (name.as_str(), *cid)),
        extents: &lines,
        hw_version: &hw_version,
        tools_version: option_word(options, "toolsversion", "2147483647")?,
        adapter: options.get("adapter_type").unwrap_or("ide"),
        size,
    }
    .text();
    let (at, room) = if kind.embedded() {
        (SECTOR, DESCRIPTOR_SECTORS * SECTOR)
    } else {
        (0, MAX_DESCRIPTOR)
    };
    if text.len() as u64 >= room {
        return Err(Error::invalid(format!(
            "the descriptor of {} bytes does not fit in {room}",
            text.len()
        )));
    }
    main.write_at(at, text.as_bytes())?;
    if !kind.embedded() {
        main.set_len(text.len() as u64)?;
    }
    main.flush()
}

pub(super) fn hw_version(options: &Options) -> Result<String> {
    let compat6 = options.flag("compat6")?.unwrap_or(false);
    match (compat6, option_word(options, "hwversion", "undefined")?) {
        (true, "undefined") => Ok("6".into()),
        (true, _) => Err(Error::invalid("compat6 cannot be enabled with hwversion set")),
        (false, "undefined") => Ok("4".into()),
        (false, version) => Ok(version.to_owned()),
    }
}

/// A text option that goes between quotes.
pub(super) fn option_word<'a>(options: &'a Options, name: &str, default: &'a str) -> Result<&'a str> {
    let word = options.get(name).unwrap_or(default);
    if word.len() > 64 || word.contains(|c: char| c == '"' || c.is_control()) {
        return Err(Error::invalid(format!(
            "option '{name}' cannot be \"{}\"",
            word.escape_debug()
        )));
    }
    Ok(word)
}

/// The CID of the layer below, which must be a VMDK that the gate opens.
fn parent_cid(main: &StorageRef, backing: &crate::env::BackingReference, env: &CreateEnv<'_>) -> Result<u32> {
    let (name, format) = (safe_name(&backing.name)?, backing.format.as_deref());
    if format.is_some_and(|f| f != "vmdk") {
        return Err(Error::invalid("backing_file must be a vmdk image"));
    }
    let reference = Reference {
        name,
        format,
        role: Role::Backing,
        from: main,
        writable: false,
    };
    let node = env.gate.open(&reference)?;
    if node.format.as_deref().is_some_and(|f| f != "vmdk") {
        return Err(Error::invalid("backing_file must be a vmdk image"));
    }
    let open_env = OpenEnv::closed(env.limits)
        .with_gate(env.gate)
        .with_secrets(env.secrets)
        .metadata_only();
    cid_of(&open::open(node.storage, &open_env)?)
}

/// The name of the main file, cut for the names of extents.
struct Stem<'a> {
    base: &'a str,
    /// With its dot; empty without one.
    extension: &'a str,
}

impl<'a> Stem<'a> {
    fn of(name: &'a str) -> Result<Self> {
        let file = safe_name(name.rsplit('/').next().unwrap_or(name))?;
        let dot = file.rfind('.').unwrap_or(file.len());
        let (base, extension) = file.split_at(dot);
        Ok(Self { base, extension })
    }
    fn file(&self) -> String {
        format!("{}{}", self.base, self.extension)
    }
    fn with(&self, suffix: &str) -> String {
        format!("{}-{suffix}{}", self.base, self.extension)
    }
}

/// Creates the extents and gives their lines.
fn extents(
    main: &StorageRef,
    kind: Subformat,
    size: u64,
    zero_grains: bool,
    stem: &Stem<'_>,
    env: &CreateEnv<'_>,
) -> Result<Vec<String>> {
    if kind.embedded() {
        if kind.stream {
            new_stream(main, size, zero_grains)?;
        } else {
            new_sparse(main, size, zero_grains)?;
        }
        return Ok(vec![kind.line(size, &stem.file())]);
    }
    let each = kind.extent_len(size);
    let count = size.div_ceil(each).max(1);
    if count > env.limits.files as u64 {
        return Err(Error::limit(format!(
            "{count} extents are more than the limit of {} files",
            env.limits.files
        )));
    }
    let mut lines = Vec::new();
    for number in 0..count {
        let len = each.min(size - number * each);
        let name = stem.with(&kind.suffix(number));
        let reference = Reference {
            name: &name,
            format: None,
            role: Role::Extent,
            from: main,
            writable: true,
        };
        let storage = env.gate.create(&reference)?;
        if kind.flat {
            storage.set_len(len)?;
            storage.flush()?;
        } else {
            new_sparse(&storage, len, zero_grains)?;
            storage.flush()?;
        }
        lines.push(kind.line(len, &name));
    }
    Ok(lines)
}

fn new_sparse(file: &StorageRef, len: u64, zero_grains: bool) -> Result<()> {
    let plan = SparsePlan::new(len)?;
    file.set_len(plan.overhead * SECTOR)?;
    file.write_at(0, plan.header(zero_grains).to_raw().as_bytes())?;
    for at in [plan.redundant, plan.directory] {
        file.write_at(at * SECTOR, &plan.directory(at))?;
    }
    Ok(())
}

/// An empty stream: header, room for the descriptor, the end.
fn new_stream(file: &StorageRef, len: u64, zero_grains: bool) -> Result<()> {
    let plan = SparsePlan::new(len)?;
    let header = NewHeader {
        redundant: 0,
        directory: GD_AT_END,
        overhead: GRAIN_SECTORS,
        compressed: true,
        ..plan.header(zero_grains)
    }
    .to_raw();
    let at = GRAIN_SECTORS * SECTOR;
    let tables = usize::try_from(plan.tables).map_err(|_| Error::limit("too many tables"))?;
    let (bytes, _) = tail(&vec![0; tables], &header, at);
    file.write_at(0, header.as_bytes())?;
    file.write_at(at, &bytes)?;
    file.set_len(at + bytes.len() as u64)
}
