//! cow: copy-on-write files of User-mode Linux.
//!
//! Supported: versions 1 (either byte order), 2 and 3 (also as some 64-bit kernels wrote it) for reading and writing, new files of
//! version 3. The backing file is always raw.
//! Refused: other versions (`NotThisFormat`), other bitmap formats of version 3 (`Unsupported`).

mod layout;
mod open;

use zerocopy::IntoBytes;

use crate::env::CreateSpec;
use crate::formats::common::{READ_ONLY, check_table};
use crate::formats::{Capabilities, Confidence, FormatDriver, Probe};
use crate::options::{OptionKind, OptionSpec, Options};
use crate::{CreateEnv, Error, Image, OpenEnv, Result, StorageRef};

const CAPABILITIES: Capabilities = Capabilities {
    create: true,
    write: true,
    backing: true,
    change_backing: true,
    make_empty: true,
    zero: true,
    size_multiple: 1,
    ..READ_ONLY
};

/// The driver.
pub struct Cow;

impl FormatDriver for Cow {
    fn name(&self) -> &'static str {
        "cow"
    }
    fn description(&self) -> &'static str {
        "User-mode Linux copy on write"
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
                help: "File name of a raw base image",
            },
            OptionSpec {
                name: "backing_fmt",
                kind: OptionKind::Choice(&["raw"]),
                default: Some("raw"),
                help: "Format of the base image",
            },
            OptionSpec {
                name: "backing_mtime",
                kind: OptionKind::Number,
                default: None,
                help: "Modification time of the base image in seconds since 1970; User-mode Linux compares it (default: now)",
            },
        ]
    }
    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        match layout::check(probe.head) {
            Ok(_) => 100,
            Err(_) => 0,
        }
    }
    fn open(&self, storage: StorageRef, _options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        Ok(Box::new(open::CowImage::open(storage, env)?))
    }
    fn create(&self, storage: StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
        let name = spec.backing.as_ref().map_or("", |b| b.name.as_str());
        if let Some(format) = spec.backing.as_ref().and_then(|b| b.format.as_deref())
            && format != "raw"
        {
            return Err(Error::unsupported(format!(
                "the backing file of a COW file is raw, not '{}'",
                format.escape_debug()
            )));
        }
        let mtime = spec.options.number("backing_mtime")?.unwrap_or(env.now);
        let raw = layout::RawHeader3 {
            magic: layout::MAGIC,
            version: 3.into(),
            mtime: u32::try_from(mtime & 0xffff_ffff).unwrap_or(0).into(),
            size: spec.virtual_size.into(),
            sector: 512.into(),
            alignment: layout::ALIGNMENT.into(),
            format: 0.into(),
            backing: layout::name_field(name)?,
        };
        let header = layout::check(raw.as_bytes()).map_err(|e| Error::invalid(e.what()))?;
        check_table("the bitmap", header.bitmap_len, env.limits)?;
        let len = header
            .data_at
            .checked_add(header.size)
            .ok_or_else(|| Error::invalid(format!("the virtual size {} is too large", header.size)))?;
        storage.set_len(0)?;
        storage.write_zeroes(0, len, true)?;
        storage.write_at(0, raw.as_bytes())?;
        storage.flush()
    }
}
