//! dmg: Apple disk images (UDIF).
//!
//! Supported: read-write images with a trailer (UDRW), read-only (UDRO), ADC (UDCO), zlib (UDZO), bzip2 (UDBZ), LZFSE (ULFO) and
//! LZMA (ULMO) chunks of any size, block tables in the property list or the resource fork, checksums (by `check`). New images with
//! zlib or LZFSE chunks, filled once from the start to the end.
//! Refused: encrypted images and segments of split ones (`Unsupported`), plain writes and changes of existing images (`Unsupported`).
//! A chunk of an unknown type is an error when it is read.

mod adc;
mod check;
mod decode;
mod fill;
mod layout;
mod open;
mod plist;
mod table;

use crate::env::CreateSpec;
use crate::formats::common::READ_ONLY;
use crate::formats::{Capabilities, Confidence, FormatDriver, Probe};
use crate::options::{OptionKind, OptionSpec, Options};
use crate::{CreateEnv, Image, OpenEnv, Result, StorageRef};

const CAPABILITIES: Capabilities = Capabilities {
    create: true,
    compress: true,
    zero: true,
    check: true,
    ..READ_ONLY
};

/// The driver.
pub struct Dmg;

impl FormatDriver for Dmg {
    fn name(&self) -> &'static str {
        "dmg"
    }
    fn description(&self) -> &'static str {
        "Apple disk image"
    }
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }
    fn create_options(&self) -> &'static [OptionSpec] {
        &[OptionSpec {
            name: "subformat",
            kind: OptionKind::Choice(&["UDZO", "ULFO"]),
            default: Some("UDZO"),
            help: "UDZO (zlib) or ULFO (LZFSE)",
        }]
    }
    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        match layout::trailer_in(probe.tail) {
            Some(at) if at + layout::KOLY_LEN == probe.tail.len() => 100,
            // Something was added behind it; it must look whole then.
            Some(at) if probe.tail.get(at + 4..at + 12) == Some(&[0, 0, 0, 4, 0, 0, 2, 0]) => 90,
            // Encrypted: refused in clear words, rather than read as raw.
            _ if probe.head.starts_with(b"encrcdsa") => 60,
            _ => 0,
        }
    }
    fn open(&self, storage: StorageRef, _options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        Ok(Box::new(open::DmgImage::open(storage, env)?))
    }
    fn create(&self, storage: StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
        fill::create(&storage, spec, env)
    }
}
