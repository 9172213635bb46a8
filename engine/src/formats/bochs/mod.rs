//! bochs: redologs of the Bochs emulator.
//!
//! Supported: growing images, read, written and created; undoable and volatile redologs as layers over the disk whose changes they
//! hold. Such a redolog does not name its disk: it is the redolog's own name without the ending that Bochs adds. Versions 1 and 2.
//! Refused: redologs with another name (`Unsupported`), sparse images of Bochs (another format).

mod layout;
mod map;
mod open;

use crate::env::CreateSpec;
use crate::formats::common::READ_ONLY;
use crate::formats::{Capabilities, Confidence, FormatDriver, Probe};
use crate::options::Options;
use crate::{CreateEnv, Error, Image, OpenEnv, Result, StorageRef};

const CAPABILITIES: Capabilities = Capabilities {
    create: true,
    write: true,
    zero: true,
    ..READ_ONLY
};

/// The driver.
pub struct Bochs;

impl FormatDriver for Bochs {
    fn name(&self) -> &'static str {
        "bochs"
    }
    fn description(&self) -> &'static str {
        "Bochs growing disk or redolog"
    }
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }
    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        match layout::check(probe.head) {
            Ok(_) => 100,
            Err(_) if layout::looks_right(probe.head) => 60,
            Err(_) => 0,
        }
    }
    fn open(&self, storage: StorageRef, _options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        Ok(Box::new(open::BochsImage::open(storage, env)?))
    }
    fn create(&self, storage: StorageRef, spec: &CreateSpec, _env: &CreateEnv<'_>) -> Result<()> {
        if spec.backing.is_some() {
            return Err(Error::unsupported(
                "a new image of format 'bochs' cannot have a backing file",
            ));
        }
        if !spec.virtual_size.is_multiple_of(512) {
            return Err(Error::invalid(format!(
                "a Bochs image has whole sectors of 512 bytes, not {} bytes",
                spec.virtual_size
            )));
        }
        let header = layout::new_header(spec.virtual_size)?;
        let catalog = layout::check(&header)?.catalog;
        let catalog = usize::try_from(catalog).unwrap_or(0);
        storage.set_len(0)?;
        storage.write_at(0, &[header, vec![0xff; catalog * 4]].concat())?;
        storage.flush()
    }
}
