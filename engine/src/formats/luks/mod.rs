//! luks: an encrypted disk behind a LUKS header.
//!
//! Supported: LUKS1 (create, read, write, resize, check, key slots), with the header in front of the data or in a file of its own (`header`
//! when opening, `detached-header` when creating). The ciphers are those of [`crate::crypto`]. A volume without a valid key opens for
//! metadata alone.
//!
//! Refused: what [`crate::crypto::luks`] refuses, a missing or wrong key (`WrongKey`), a payload past the end of the file (`Corrupt`).
//! Nothing reads as zeroes by itself: sectors never written hold what their bytes decrypt to. Growing leaves such sectors behind, as QEMU
//! does, unless full preallocation is asked for.

mod check;
mod create;
mod image;

mod open;
mod options;

use crate::crypto::luks::lost_its_magic;
use crate::env::CreateSpec;
use crate::formats::{Bound, Capabilities, Confidence, FormatDriver, MeasureSpec, Measurement, Probe};
use crate::options::{OptionSpec, Options};
use crate::{CreateEnv, Error, Image, OpenEnv, Result, StorageRef};

const CAPABILITIES: Capabilities = Capabilities {
    create: true,
    write: true,
    backing: false,
    change_backing: false,
    make_empty: false,
    zero: false,
    discard: false,
    compress: false,
    grow: true,
    shrink: true,
    check: true,
    repair: false,
    snapshots: false,
    bitmaps: false,
    amend: true,
    encryption: true,
    several_files: false,
    measure: true,
    size_multiple: 512,
};

/// The driver.
pub struct Luks;

impl FormatDriver for Luks {
    fn name(&self) -> &'static str {
        "luks"
    }
    fn description(&self) -> &'static str {
        "Linux Unified Key Setup: encrypted disk with key slots"
    }
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }
    fn create_options(&self) -> &'static [OptionSpec] {
        options::CREATE
    }
    fn open_options(&self) -> &'static [OptionSpec] {
        options::OPEN
    }
    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        match probe.head {
            [b'L', b'U', b'K', b'S', 0xba, 0xbe, 0, 1 | 2, ..] => 100,
            [b'L', b'U', b'K', b'S', 0xba, 0xbe, ..] => 50,
            head if lost_its_magic(head) => 40,
            _ => 0,
        }
    }
    fn open(&self, storage: StorageRef, options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        open::open(storage, options, env)
    }
    fn create(&self, storage: StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
        if spec.backing.is_some() {
            return Err(Error::unsupported("format 'luks' cannot have a backing file"));
        }
        create::create(storage, spec, env)
    }
    fn measure(&self, spec: &MeasureSpec<'_>) -> Result<Measurement> {
        create::measure(spec)
    }
    fn bound(&self, spec: &MeasureSpec<'_>) -> Result<Bound> {
        create::bound(spec)
    }
}
