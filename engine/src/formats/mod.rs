//! Format drivers. They know storages and the driver traits, not the operations and not each other.

mod bochs;
mod cloop;
mod common;
mod cow;
mod dmg;
mod findings;
mod iso;
mod luks;
mod parallels;
mod qcow;
mod qcow2;
mod qed;
mod raw;
mod two_level;
mod vdi;
mod vhdx;
mod vmdk;
mod vpc;
pub mod vvfat;
mod windows;
mod xml;

#[cfg(test)]
mod testing;

use crate::env::CreateSpec;
use crate::options::{OptionSpec, Options};
use crate::{CreateEnv, Error, Image, OpenEnv, Result, Storage, StorageRef};

/// What a driver can do: data for people, for the service and for the conformance suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Capabilities {
    /// New images can be made.
    pub create: bool,
    /// Guest data can be written.
    pub write: bool,
    /// An image can have a layer below.
    pub backing: bool,
    /// The name of the layer below can be changed.
    pub change_backing: bool,
    /// All data can be dropped (`commit` empties the overlay).
    pub make_empty: bool,
    /// A new image reads as zeroes, and ranges can be zeroed. Without it (encryption) what was never written is noise.
    pub zero: bool,
    /// Space can be given back.
    pub discard: bool,
    /// Compressed units can be written.
    pub compress: bool,
    /// The virtual size can grow.
    pub grow: bool,
    /// The virtual size can shrink.
    pub shrink: bool,
    /// There is something to check.
    pub check: bool,
    /// Damage can be mended.
    pub repair: bool,
    /// Internal snapshots.
    pub snapshots: bool,
    /// Persistent dirty bitmaps.
    pub bitmaps: bool,
    /// Options of an existing image can change.
    pub amend: bool,
    /// Guest data can be encrypted.
    pub encryption: bool,
    /// An image can be of several files.
    pub several_files: bool,
    /// The needed space can be told beforehand.
    pub measure: bool,
    /// The virtual size is a multiple of this many bytes.
    pub size_multiple: u64,
}

/// What `detect` may look at.
#[derive(Debug)]
pub struct Probe<'a> {
    /// The first bytes, up to 128 KiB.
    pub head: &'a [u8],
    /// The last bytes, up to 1 KiB (footers).
    pub tail: &'a [u8],
    /// Length of the file.
    pub len: u64,
    /// Name of the file, for formats without any magic.
    pub name: &'a str,
}

/// How sure a driver is that a file is of its format, 0 (not) to 100 (magic and version fit).
pub type Confidence = u8;

/// Space that a new image would need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measurement {
    /// Bytes for the data that there is.
    pub required: u64,
    /// Bytes when every unit is allocated.
    pub fully_allocated: u64,
    /// Bytes for dirty bitmaps, where the format has them and they were asked for.
    pub bitmaps: Option<u64>,
}

/// What the file of a new image comes to at most. [`Measurement`] has qemu-img's sums, which do not follow every option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Length of the file in bytes.
    pub len: u64,
    /// Whether it has this length whatever is stored in it.
    pub fixed: bool,
    /// Bytes of the file that are stored; the others are holes.
    pub stored: u64,
}

impl Bound {
    /// Of a file that grows with what is stored, without holes.
    fn dense(len: u64) -> Self {
        Self {
            len,
            fixed: false,
            stored: len,
        }
    }
}

/// What `measure` is told about the data to be stored.
#[derive(Debug, Clone, Copy)]
pub struct MeasureSpec<'a> {
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Guest ranges (offset, length) with data, in order, merged.
    pub data: &'a [(u64, u64)],
    /// Create options.
    pub options: &'a Options,
    /// Whether the image will have a layer below.
    pub backing: bool,
}

/// Opens, creates and recognises images of one format.
pub trait FormatDriver: Sync {
    /// QEMU's name of the format.
    fn name(&self) -> &'static str;
    /// Other names it answers to.
    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }
    /// One line for people.
    fn description(&self) -> &'static str;
    /// What it can do.
    fn capabilities(&self) -> &'static Capabilities;
    /// Whether an image can have a layer below it that its opener names, also where none can be made over a layer.
    fn opens_over_backing(&self) -> bool {
        self.capabilities().backing
    }
    /// Options of `create`.
    fn create_options(&self) -> &'static [OptionSpec] {
        &[]
    }
    /// Options of `open` (dotted names for nested ones).
    fn open_options(&self) -> &'static [OptionSpec] {
        &[]
    }
    /// Recognises a file by content.
    fn detect(&self, probe: &Probe<'_>) -> Confidence;
    /// Opens an image. Options are already checked against [`open_options`](Self::open_options).
    fn open(&self, storage: StorageRef, options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>>;
    /// Makes a new image on an empty storage (or over whatever a device holds). Options are already checked.
    fn create(&self, _storage: StorageRef, _spec: &CreateSpec, _env: &CreateEnv<'_>) -> Result<()> {
        Err(Error::unsupported(format!(
            "images of format '{}' cannot be created",
            self.name()
        )))
    }
    /// Tells the space a new image would need.
    fn measure(&self, _spec: &MeasureSpec<'_>) -> Result<Measurement> {
        Err(Error::unsupported(format!(
            "images of format '{}' cannot be measured",
            self.name()
        )))
    }
    /// Tells what a new image comes to at most, whatever its options are.
    fn bound(&self, spec: &MeasureSpec<'_>) -> Result<Bound> {
        Ok(Bound::dense(self.measure(spec)?.required))
    }
}

/// All drivers. Adding a format is its folder and a line here.
pub const DRIVERS: &[&dyn FormatDriver] = &[
    &raw::Raw,
    &bochs::Bochs,
    &cloop::Cloop,
    &cow::Cow,
    &dmg::Dmg,
    &iso::Iso,
    &luks::Luks,
    &parallels::Parallels,
    &qcow2::Qcow2,
    &qcow::Qcow,
    &qed::Qed,
    &vdi::Vdi,
    &vhdx::Vhdx,
    &vmdk::Vmdk,
    &vpc::Vpc,
    &vvfat::Vvfat,
];

/// The driver of this name or alias.
///
/// # Errors
/// `InvalidArgument` that lists the known names.
pub fn by_name(name: &str) -> Result<&'static dyn FormatDriver> {
    let found = DRIVERS.iter().find(|d| d.name() == name || d.aliases().contains(&name));
    found.copied().ok_or_else(|| {
        let known: Vec<_> = DRIVERS.iter().map(|d| d.name()).collect();
        Error::invalid(format!(
            "unknown format '{}'; known are {}",
            name.escape_debug(),
            known.join(", ")
        ))
    })
}

/// Every format that a file's content speaks for, most likely first. Raw speaks for everything, with confidence 1.
///
/// # Errors
/// `Io` when the file cannot be read.
pub fn detect(storage: &dyn Storage) -> Result<Vec<(&'static dyn FormatDriver, Confidence)>> {
    let len = storage.len()?;
    let mut head = vec![0; len.min(128 << 10) as usize];
    storage.read_at(0, &mut head)?;
    let mut tail = vec![0; len.min(1 << 10) as usize];
    storage.read_at(len - tail.len() as u64, &mut tail)?;
    let probe = Probe {
        head: &head,
        tail: &tail,
        len,
        name: storage.name(),
    };
    let mut found: Vec<_> = DRIVERS
        .iter()
        .map(|d| (*d, d.detect(&probe)))
        .filter(|(_, c)| *c > 0)
        .collect();
    found.sort_by_key(|(_, confidence)| std::cmp::Reverse(*confidence));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_are_unique() {
        let mut names: Vec<_> = DRIVERS
            .iter()
            .flat_map(|d| [&[d.name()], d.aliases()].concat())
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
