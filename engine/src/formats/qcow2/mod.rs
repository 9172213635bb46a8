//! qcow2: QEMU's format, versions 2 and 3.
//!
//! Supported: all cluster sizes (512 bytes to 2 MiB) and refcount widths (1 to 64 bits), zlib and zstd compressed clusters, zero clusters,
//! extended L2 entries, external data files (raw ones too), backing files, LUKS and legacy AES encryption, unknown header extensions and
//! fields (kept).
//!
//! Refused, each by name: unknown incompatible features, versions and compression types (`Unsupported`), compressed clusters in encrypted
//! images (`Unsupported`), data of an encrypted image without its secret (`WrongKey`), writing to images marked corrupt or whose metadata overlaps (`Corrupt`).
//!
//! Where things are: `layout` the bytes; `open`, `create`; `locate`, `read`; `tables`, `write`, `zero`, `packed`, `bulk`; `refcounts` who
//! uses which cluster; `writer` the order of writes; `metadata` which clusters must never be taken for guest data.

mod amend;
mod bitmap_table;
mod bitmaps;
mod bulk;
mod cache;
mod check;
mod clusters;
mod codec;
mod create;
mod create_crypt;
mod crypt;
mod double_use;
mod downgrade;
mod forget;
mod grow;
mod header_io;
mod host;
mod image;
mod info;
mod layout;
mod locate;
mod measure;
mod metadata;
mod open;
mod options;
mod packed;
mod read;
mod refcounts;
mod releases;
mod reserved;
mod resize;
mod shrink;
mod snapshots;
mod tables;
mod write;
mod writer;
mod zero;

use crate::env::CreateSpec;
use crate::formats::{Bound, Capabilities, Confidence, FormatDriver, MeasureSpec, Measurement, Probe};
use crate::options::{OptionSpec, Options};
use crate::{CreateEnv, Image, OpenEnv, Result, StorageRef};

const CAPABILITIES: Capabilities = Capabilities {
    create: true,
    write: true,
    backing: true,
    change_backing: true,
    make_empty: true,
    zero: true,
    discard: true,
    compress: true,
    grow: true,
    shrink: true,
    check: true,
    repair: true,
    snapshots: true,
    bitmaps: true,
    amend: true,
    encryption: true,
    several_files: true,
    measure: true,
    size_multiple: 512,
};

/// The driver.
pub struct Qcow2;

impl FormatDriver for Qcow2 {
    fn name(&self) -> &'static str {
        "qcow2"
    }
    fn description(&self) -> &'static str {
        "QEMU copy-on-write images, versions 2 and 3"
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
        if layout::header::looks_like(probe.head) { 100 } else { 0 }
    }
    fn open(&self, storage: StorageRef, options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        Ok(Box::new(open::open(storage, options, env)?))
    }
    fn measure(&self, spec: &MeasureSpec<'_>) -> Result<Measurement> {
        measure::measure(spec)
    }
    fn bound(&self, spec: &MeasureSpec<'_>) -> Result<Bound> {
        measure::bound(spec)
    }
    fn create(&self, storage: StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
        create::create(storage, spec, env)
    }
}
