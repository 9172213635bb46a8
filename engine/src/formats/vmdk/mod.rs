//! vmdk: VMware's disk images.
//!
//! Read: monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat, streamOptimized (directory in front or in the
//! footer), ESX's vmfs (flat), COWD (vmfsSparse) and SESparse, deltas over a layer named by parentFileNameHint, and single sparse extents
//! without their descriptor.
//! Created and written: the five hosted subformats; streamOptimized once, from beginning to end.
//!
//! Refused: host devices (fullDevice, partitionedDevice, raw device maps: `Unsupported`), writing to version 3 extents that are not
//! compressed (they track changed blocks), to ESX extents and to single extents (`Unsupported`); whatever contradicts itself or the
//! file's length (`Corrupt`); an overlay whose base has another CID (`Corrupt`, by the chain). Every file named in a descriptor is opened by
//! the gate.

mod bulk;
mod check;
mod create;
mod descriptor;
mod entry;
mod esx;
mod first_write;
mod flush;
mod image;
mod inflate;
mod layout;
mod measure;
mod mend;
mod meta;
mod metadata;
mod open;
mod open_extent;
mod places;
mod remake;
mod reserved;
mod resize;
mod sparse;
mod stream;
mod tables;
mod write;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod flush_tests;
#[cfg(test)]
mod grow_tests;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod mend_tests;
#[cfg(test)]
mod open_tests;
#[cfg(test)]
mod remake_tests;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;

use crate::env::CreateSpec;
use crate::formats::{Capabilities, Confidence, FormatDriver, MeasureSpec, Measurement, Probe};
use crate::options::{OptionKind, OptionSpec, Options};
use crate::{CreateEnv, Image, OpenEnv, Result, StorageRef};

const CAPABILITIES: Capabilities = Capabilities {
    create: true,
    write: true,
    backing: true,
    change_backing: true,
    make_empty: false,
    zero: true,
    discard: true,
    compress: true,
    grow: true,
    shrink: false,
    check: true,
    repair: true,
    snapshots: false,
    bitmaps: false,
    amend: false,
    encryption: false,
    several_files: true,
    measure: true,
    size_multiple: 512,
};

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "adapter_type",
        kind: OptionKind::Choice(&["ide", "lsilogic", "buslogic", "legacyESX"]),
        default: None,
        help: "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX",
    },
    OptionSpec {
        name: "compat6",
        kind: OptionKind::Bool,
        default: Some("off"),
        help: "VMDK version 6 image",
    },
    OptionSpec {
        name: "hwversion",
        kind: OptionKind::Text,
        default: Some("undefined"),
        help: "VMDK hardware version",
    },
    OptionSpec {
        name: "subformat",
        kind: OptionKind::Choice(&[
            "monolithicSparse",
            "monolithicFlat",
            "twoGbMaxExtentSparse",
            "twoGbMaxExtentFlat",
            "streamOptimized",
        ]),
        default: None,
        help: "VMDK flat extent format, can be one of {monolithicSparse (default) | monolithicFlat | twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized} ",
    },
    OptionSpec {
        name: "toolsversion",
        kind: OptionKind::Text,
        default: None,
        help: "VMware guest tools version",
    },
    OptionSpec {
        name: "zeroed_grain",
        kind: OptionKind::Bool,
        default: None,
        help: "Enable efficient zero writes using the zeroed-grain GTE feature",
    },
];

/// The driver.
pub struct Vmdk;

impl FormatDriver for Vmdk {
    fn name(&self) -> &'static str {
        "vmdk"
    }
    fn description(&self) -> &'static str {
        "VMware disk image"
    }
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }
    fn create_options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }
    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        match open::kind_of(probe.head) {
            Some(open::FileKind::Text) => 95,
            Some(_) => 100,
            None => 0,
        }
    }
    fn open(&self, storage: StorageRef, _options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        Ok(Box::new(open::open(storage, env)?))
    }
    fn create(&self, storage: StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
        create::create(&storage, spec, env)
    }
    fn measure(&self, spec: &MeasureSpec<'_>) -> Result<Measurement> {
        measure::measure(spec)
    }
}
