//! cloop: compressed loop images, version 2.0.
//!
//! Supported: reading; new images, filled once from the start to the end through the bulk writer or by compressed writes of whole
//! blocks. Blocks that are never written are stored as zeroes by the flush. The virtual size is a whole number of blocks.
//! A new image that was never filled has a table of zeroes and nothing behind it, and reads as zeroes here; other readers refuse it.
//! Refused: other versions (`NotThisFormat`), plain writes and changes of finished images (`Unsupported`), files whose filling was
//! interrupted (`Corrupt`).

mod fill;
mod layout;
mod open;

use zerocopy::IntoBytes;

use crate::env::CreateSpec;
use crate::formats::common::{MAX_UNIT, READ_ONLY, check_table};
use crate::formats::{Capabilities, Confidence, FormatDriver, Probe};
use crate::options::{OptionKind, OptionSpec, Options};
use crate::{CreateEnv, Error, Image, OpenEnv, Result, StorageRef};

const CAPABILITIES: Capabilities = Capabilities {
    create: true,
    zero: true,
    compress: true,
    ..READ_ONLY
};

/// The driver.
pub struct Cloop;

impl FormatDriver for Cloop {
    fn name(&self) -> &'static str {
        "cloop"
    }
    fn description(&self) -> &'static str {
        "compressed loop image"
    }
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }
    fn create_options(&self) -> &'static [OptionSpec] {
        &[OptionSpec {
            name: "block_size",
            kind: OptionKind::Size,
            default: Some("65536"),
            help: "Bytes of a block, a multiple of 512 up to 2 MiB",
        }]
    }
    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        match layout::check(probe.head) {
            Ok(_) if probe.head.starts_with(layout::KNOWN) => 100,
            Err(_) if probe.head.starts_with(layout::MAGIC) => 60,
            Ok(_) | Err(_) => 0,
        }
    }
    fn open(&self, storage: StorageRef, _options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        Ok(Box::new(open::CloopImage::open(storage, env)?))
    }
    fn create(&self, storage: StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
        if spec.backing.is_some() {
            return Err(Error::unsupported("format 'cloop' cannot have a backing file"));
        }
        let block = spec.options.size("block_size")?.unwrap_or(65536);
        if block > MAX_UNIT {
            return Err(Error::invalid(format!("block size {block} is larger than 2 MiB")));
        }
        let blocks = spec.virtual_size.div_ceil(block.max(1));
        let narrow =
            |n: u64| u32::try_from(n).map_err(|_| Error::invalid(format!("{n} is too large for a cloop header")));
        let raw = layout::new_header(narrow(block)?, narrow(blocks)?);
        let header = layout::check(raw.as_bytes()).map_err(|e| Error::invalid(e.what()))?;
        check_table("the table of offsets", header.table_bytes(), env.limits)?;
        storage.set_len(0)?;
        storage.write_zeroes(0, header.data_at(), true)?;
        storage.write_at(0, raw.as_bytes())?;
        storage.flush()
    }
}
