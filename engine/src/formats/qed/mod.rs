//! qed: QEMU's enhanced disk.
//!
//! Supported: everything in the specification: backing files, zero clusters, cluster sizes from 4 KiB to 64 MiB, tables of 1 to 16
//! clusters, growing, check and repair. An image with the need-check bit is repaired when it is opened for writing. New images do not
//! set that bit: tables are written in an order that needs no check.
//! Refused: unknown features (`Unsupported`), shrinking, preallocation, backing names that are not UTF-8.

mod check;
mod create;
mod layout;
mod open;

use crate::env::CreateSpec;
use crate::formats::common::READ_ONLY;
use crate::formats::{Capabilities, Confidence, FormatDriver, MeasureSpec, Measurement, Probe};
use crate::options::{OptionKind, OptionSpec, Options};
use crate::{CreateEnv, Image, OpenEnv, Result, StorageRef};

const CAPABILITIES: Capabilities = Capabilities {
    create: true,
    write: true,
    backing: true,
    change_backing: true,
    zero: true,
    grow: true,
    check: true,
    repair: true,
    measure: true,
    ..READ_ONLY
};

/// The driver.
pub struct Qed;

impl FormatDriver for Qed {
    fn name(&self) -> &'static str {
        "qed"
    }
    fn description(&self) -> &'static str {
        "QEMU's enhanced disk"
    }
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }
    fn create_options(&self) -> &'static [OptionSpec] {
        &[
            OptionSpec {
                name: "backing_file",
                kind: OptionKind::Text,
                default: None,
                help: "File name of a base image",
            },
            OptionSpec {
                name: "backing_fmt",
                kind: OptionKind::Text,
                default: None,
                help: "Image format of the base image",
            },
            OptionSpec {
                name: "cluster_size",
                kind: OptionKind::Size,
                default: Some("65536"),
                help: "Cluster size (in bytes)",
            },
            OptionSpec {
                name: "table_size",
                kind: OptionKind::Size,
                default: Some("4"),
                help: "L1/L2 table size (in clusters)",
            },
        ]
    }
    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        if probe.head.len() >= layout::HEADER_LEN && probe.head.starts_with(&layout::MAGIC) {
            100
        } else {
            0
        }
    }
    fn open(&self, storage: StorageRef, _options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        Ok(Box::new(open::QedImage::open(storage, env)?))
    }
    fn create(&self, storage: StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
        create::create(&storage, spec, env)
    }
    fn measure(&self, spec: &MeasureSpec<'_>) -> Result<Measurement> {
        create::measure(spec)
    }
}
