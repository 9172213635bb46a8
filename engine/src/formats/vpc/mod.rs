//! vpc: Virtual Hard Disk, the format of Virtual PC, Hyper-V (generation 1) and Azure.
//!
//! Supported: fixed, dynamic and differencing disks (the disk below is opened through the gate, and must have the id that the overlay
//! recorded); the virtual size by QEMU's rules (geometry or size field, by the program that made the image; `force_size_calc` decides);
//! footers of 511 bytes; writing, growing and shrinking (not of differencing disks), emptying, another disk below, check and repair.
//!
//! Refused: sums that are wrong, footers that differ, tables that do not fit the file, blocks outside the file or over each other
//! (`Corrupt`); unknown disk types, features and versions, blocks over 256 MiB (`Unsupported`). An image whose two footers agree on the same
//! wrong sum was edited by a program that does not keep sums: it can be read, not written. A dynamic disk without its last footer
//! was cut short by a crash: the copy at the front serves.

mod backing;
mod bitmaps;
mod blocks;
mod check;
mod create;
mod geometry;
mod hidden;
mod image;
mod layout;
mod locator;
mod open;
mod resize;
mod write;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

use zerocopy::FromBytes;

use self::geometry::SizeRule;
use self::layout::{DiskKind, FOOTER, Footer, RawFooter};
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
    size_multiple: layout::SECTOR,
};

/// The driver.
pub struct Vpc;

impl FormatDriver for Vpc {
    fn name(&self) -> &'static str {
        "vpc"
    }
    fn aliases(&self) -> &'static [&'static str] {
        &["vhd"]
    }
    fn description(&self) -> &'static str {
        "Virtual Hard Disk (Virtual PC, Hyper-V, Azure)"
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
                help: "Type of virtual hard disk: dynamic (default), fixed, or differencing (default with a backing file)",
            },
            OptionSpec {
                name: "force_size",
                kind: OptionKind::Bool,
                default: Some("off"),
                help: "Use exactly the size that is given instead of the nearest disk geometry's",
            },
        ]
    }
    fn open_options(&self) -> &'static [OptionSpec] {
        &[OptionSpec {
            name: "force_size_calc",
            kind: OptionKind::Choice(&["chs", "current_size"]),
            default: None,
            help: "Take the virtual size from the geometry or from the size field (default: by the program that made the image)",
        }]
    }

    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        let sure = |(_, sound)| if sound { 100 } else { 60 };
        let at_end = |len: u64| {
            probe
                .tail
                .len()
                .checked_sub(len as usize)
                .and_then(|from| probe.tail.get(from..))
        };
        let end = at_end(FOOTER)
            .and_then(footer_in)
            .or_else(|| at_end(FOOTER - 1).and_then(footer_in));
        if let Some(found) = end {
            return sure(found);
        }
        // The first sector of a fixed disk is the guest's.
        let front = probe.head.get(..FOOTER as usize).and_then(footer_in);
        front.filter(|(kind, _)| *kind != DiskKind::Fixed).map_or(0, sure)
    }

    fn open(&self, storage: StorageRef, options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        let rule = match options.get("force_size_calc") {
            Some("chs") => SizeRule::Chs,
            Some("current_size") => SizeRule::CurrentSize,
            _ => SizeRule::Creator,
        };
        let opened = open::read(storage.as_ref(), rule, env.limits)?;
        opened.findings.admit(env)?;
        Ok(Box::new(image::VpcImage::new(storage, opened, rule, env)))
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

/// The kind of disk that a footer in these bytes speaks of, and whether its sum is right.
fn footer_in(bytes: &[u8]) -> Option<(DiskKind, bool)> {
    let mut whole = [0; FOOTER as usize];
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    let raw = RawFooter::read_from_bytes(&whole).ok()?;
    Some((Footer::try_from(raw).ok()?.kind, raw.is_sound()))
}
