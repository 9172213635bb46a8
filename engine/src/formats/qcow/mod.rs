//! qcow: version 1 of QEMU's copy-on-write format.
//!
//! Supported: reading and writing, backing files, compressed clusters (also writing them), emptying an overlay, AES encryption, checking.
//! Refused: data of an encrypted image without its secret (`WrongKey`), compressing in one (`Unsupported`), an image size below 2 bytes as in QEMU, resizing (the L1 table cannot grow).

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
    make_empty: true,
    zero: true,
    compress: true,
    check: true,
    encryption: true,
    measure: true,
    ..READ_ONLY
};

/// The driver.
pub struct Qcow;

impl FormatDriver for Qcow {
    fn name(&self) -> &'static str {
        "qcow"
    }
    fn description(&self) -> &'static str {
        "QEMU copy on write, version 1"
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
                help: "Format of the backing image",
            },
            OptionSpec {
                name: "encrypt.format",
                kind: OptionKind::Text,
                default: None,
                help: "Encrypt the image, format choices: 'aes'",
            },
            OptionSpec {
                name: "encrypt.key-secret",
                kind: OptionKind::Text,
                default: None,
                help: "ID of the secret that provides the AES encryption key",
            },
            OptionSpec {
                name: "encryption",
                kind: OptionKind::Bool,
                default: None,
                help: "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
            },
        ]
    }
    fn open_options(&self) -> &'static [OptionSpec] {
        &[
            OptionSpec {
                name: "encrypt.format",
                kind: OptionKind::Text,
                default: None,
                help: "Encryption that the header must name: 'aes'",
            },
            OptionSpec {
                name: "encrypt.key-secret",
                kind: OptionKind::Text,
                default: None,
                help: "ID of the secret that provides the AES encryption key",
            },
        ]
    }
    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        let magic = probe.head.starts_with(&layout::MAGIC) && probe.head.len() >= layout::HEADER_LEN;
        match probe.head.get(4..8) {
            Some([0, 0, 0, 1]) if magic => 100,
            _ => 0,
        }
    }
    fn open(&self, storage: StorageRef, options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        Ok(Box::new(open::QcowImage::open(storage, options, env)?))
    }
    fn create(&self, storage: StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
        create::create(&storage, spec, env)
    }
    fn measure(&self, spec: &MeasureSpec<'_>) -> Result<Measurement> {
        create::measure(spec)
    }
}
