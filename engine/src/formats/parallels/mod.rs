//! parallels: expandable images (`.hds`), and bundles of them (`DiskDescriptor.xml`).
//!
//! Bundles are read: the current state through its snapshots, of plain and expandable files in the bundle's folder.
//! Supported: both magics for reading and writing, new images with the newer one, resizing, check and repair, the dirty bitmaps of the
//! format extension (read). An image that was not closed, or whose data offset is wrong, is repaired when it is opened for writing, unless
//! clusters would be dropped for that (`Corrupt`). The first change drops the format extension, because its bitmaps would no longer be true.
//! Refused: header versions other than 2 (`NotThisFormat`); writing to bundles, and encrypted ones (`Unsupported`); descriptors that
//! contradict themselves, name files elsewhere, or let a state lie over itself (`Corrupt`).

mod bitmaps;
mod bundle;
mod check;
mod create;
mod data;
mod descriptor;
mod layout;
mod map;
mod open;
mod resize;

use crate::env::CreateSpec;
use crate::formats::common::READ_ONLY;
use crate::formats::{Capabilities, Confidence, FormatDriver, MeasureSpec, Measurement, Probe};
use crate::options::{OptionKind, OptionSpec, Options};
use crate::storage::read_padded;
use crate::{CreateEnv, Image, OpenEnv, Result, StorageRef};

const CAPABILITIES: Capabilities = Capabilities {
    create: true,
    write: true,
    zero: true,
    discard: true,
    grow: true,
    shrink: true,
    check: true,
    repair: true,
    measure: true,
    several_files: true,
    ..READ_ONLY
};

/// The driver.
pub struct Parallels;

impl FormatDriver for Parallels {
    fn name(&self) -> &'static str {
        "parallels"
    }
    fn description(&self) -> &'static str {
        "Parallels expandable disk"
    }
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }
    fn create_options(&self) -> &'static [OptionSpec] {
        &[OptionSpec {
            name: "cluster_size",
            kind: OptionKind::Size,
            default: Some("1048576"),
            help: "Parallels image cluster size",
        }]
    }
    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        let magic = probe.head.starts_with(&layout::MAGIC_OLD) || probe.head.starts_with(&layout::MAGIC_EXT);
        match probe.head.get(16..20) {
            Some([2, 0, 0, 0]) if magic && probe.head.len() >= layout::HEADER_LEN => 100,
            _ if descriptor::looks_like_descriptor(probe.head) => 95,
            _ => 0,
        }
    }
    fn open(&self, storage: StorageRef, _options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        let mut head = [0; 4096];
        read_padded(storage.as_ref(), 0, &mut head)?;
        if descriptor::looks_like_descriptor(&head) {
            return Ok(Box::new(bundle::Bundle::open(storage, env)?));
        }
        Ok(Box::new(open::ParallelsImage::open(storage, env)?))
    }
    fn create(&self, storage: StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
        create::create(&storage, spec, env)
    }
    fn measure(&self, spec: &MeasureSpec<'_>) -> Result<Measurement> {
        create::measure(spec)
    }
}
