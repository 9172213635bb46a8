//! vdi: VirtualBox's disk images.
//!
//! Supported: version 1.1; dynamic and static images; differencing and undo images over a layer that the caller or the gate resolves
//! (the header holds the layer's UUID, no file name: the gate is asked for `uuid:...`); any power of two from 4 KiB to 256 MiB as
//! block size, and blocks with extra bytes before them; writing, growing, check and repair.
//!
//! Refused: other versions (`Unsupported`); a map that the file cannot hold, entries outside the image, two guest blocks in one place
//! (`Corrupt`; a check still opens the last two); tables over `Limits::table_bytes` (`LimitExceeded`).

mod bulk;
mod check;
mod create;
mod image;
mod layout;
mod map;
mod open;
mod resize;
mod write;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

use zerocopy::FromBytes;

use crate::env::CreateSpec;
use crate::formats::{Bound, Capabilities, Confidence, FormatDriver, MeasureSpec, Measurement, Probe};
use crate::options::{OptionKind, OptionSpec, Options};
use crate::{CreateEnv, Image, OpenEnv, Result, StorageRef};

const CAPABILITIES: Capabilities = Capabilities {
    create: true,
    write: true,
    backing: false,
    change_backing: false,
    make_empty: false,
    zero: true,
    discard: true,
    compress: false,
    grow: true,
    shrink: false,
    check: true,
    repair: true,
    snapshots: false,
    bitmaps: false,
    amend: false,
    encryption: false,
    several_files: false,
    measure: true,
    size_multiple: 512,
};

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "static",
        kind: OptionKind::Bool,
        default: Some("off"),
        help: "VDI static (pre-allocated) image",
    },
    OptionSpec {
        name: "block_size",
        kind: OptionKind::Size,
        default: Some("1M"),
        help: "Guest bytes of a block, a power of two (QEMU opens 1M only)",
    },
];

/// The driver.
pub struct Vdi;

impl FormatDriver for Vdi {
    fn name(&self) -> &'static str {
        "vdi"
    }
    fn description(&self) -> &'static str {
        "VirtualBox disk image"
    }
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }
    /// Differencing images are read and written, not made.
    fn opens_over_backing(&self) -> bool {
        true
    }
    fn create_options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }
    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        let Ok((header, _)) = layout::RawHeader::read_from_prefix(probe.head) else {
            return 0;
        };
        match (header.signature.get(), header.version.get()) {
            (layout::SIGNATURE, layout::VERSION_1_1) => 100,
            (layout::SIGNATURE, _) => 60,
            _ => 0,
        }
    }
    fn open(&self, storage: StorageRef, _options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        Ok(Box::new(open::open(storage, env)?))
    }
    fn create(&self, storage: StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
        create::create(&storage, spec, env)
    }
    fn measure(&self, spec: &MeasureSpec<'_>) -> Result<Measurement> {
        create::measure(spec)
    }
    fn bound(&self, spec: &MeasureSpec<'_>) -> Result<Bound> {
        create::bound(spec)
    }
}
