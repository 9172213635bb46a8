//! vhdx: Virtual Hard Disk v2, the format of Hyper-V.
//!
//! Supported: fixed, dynamic and differencing disks with partially present blocks (the disk below is opened through the gate, and must
//! have the data-write id that the overlay recorded), sectors of 512 and 4096 bytes, blocks from 1 to 256 MiB; a log that is in use is
//! replayed, in memory when the image is read, in the file when it is opened for writing; metadata are written through the log; growing and
//! shrinking (not of differencing disks), emptying, another disk below, check and repair.
//!
//! Refused: headers and region tables none of which is sound, regions that overlap or end past the file, a log in use without a
//! sound entry, tables that do not fit, blocks outside the file or over each other (`Corrupt`); regions and metadata items that must be known
//! and are not (`Unsupported`).

mod backing;
mod bits;
mod blocks;
mod check;
mod create;
mod flush;
mod image;
mod journal;
mod layout;
mod locator;
mod log;
mod metadata;
mod open;
mod resize;
mod write;
mod zero;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

use crate::env::CreateSpec;
use crate::formats::{Bound, Capabilities, Confidence, FormatDriver, MeasureSpec, Measurement, Probe};
use crate::options::{OptionKind, OptionSpec, Options};
use crate::{CreateEnv, Image, OpenEnv, Result, StorageRef};

const CAPABILITIES: Capabilities = Capabilities {
    create: true,
    write: true,
    backing: true,
    change_backing: true,
    make_empty: true,
    zero: true,
    discard: true,
    compress: false,
    grow: true,
    shrink: true,
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

/// The driver.
pub struct Vhdx;

impl FormatDriver for Vhdx {
    fn name(&self) -> &'static str {
        "vhdx"
    }
    fn description(&self) -> &'static str {
        "Virtual Hard Disk v2 (Hyper-V)"
    }
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }
    fn create_options(&self) -> &'static [OptionSpec] {
        &[
            OptionSpec {
                name: "subformat",
                kind: OptionKind::Choice(&["dynamic", "fixed", "differencing"]),
                default: None,
                help: "Type of VHDX: dynamic (default), fixed, or differencing (default with a backing file)",
            },
            OptionSpec {
                name: "block_size",
                kind: OptionKind::Size,
                default: Some("0"),
                help: "Block size, a power of two from 1 MiB to 256 MiB; 0: by the size of the disk (2 MiB with a backing file)",
            },
            OptionSpec {
                name: "log_size",
                kind: OptionKind::Size,
                default: Some("1M"),
                help: "Log size in whole MiB",
            },
            OptionSpec {
                name: "block_state_zero",
                kind: OptionKind::Bool,
                default: None,
                help: "Blocks begin in the state 'zero' instead of 'not present' (default: on for dynamic images)",
            },
        ]
    }
    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        match layout::has_file_type(probe.head) {
            false => 0,
            true if layout::HEADERS.iter().any(|place| header_at(probe.head, *place)) => 100,
            true => 60,
        }
    }

    fn open(&self, storage: StorageRef, _options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        let opened = open::read(&storage, env)?;
        opened.findings.admit(env)?;
        Ok(Box::new(image::VhdxImage::new(opened, env)?))
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

/// Whether a sound header is there.
fn header_at(head: &[u8], place: u64) -> bool {
    let start = usize::try_from(place).unwrap_or(usize::MAX);
    let page = start.checked_add(4096).and_then(|end| head.get(start..end));
    page.is_some_and(layout::Header::is_sound)
}
