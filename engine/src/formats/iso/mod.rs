//! iso: optical disc images, read-only, with what their volume descriptors say in `info`.
//!
//! Supported: ISO 9660 (Joliet, El Torito), UDF, and bridges of both. The disk is the file, in whole sectors of 512 bytes as for raw.
//! Refused: files without a volume descriptor at sector 16 (`NotThisFormat`), writing.

mod volume;

use crate::formats::common::{READ_ONLY, check_range};
use crate::formats::{Capabilities, Confidence, FormatDriver, Probe};
use crate::image::{BackingReference, Extent, ExtentKind, HostPlace, ImageInfo};
use crate::options::Options;
use crate::storage::read_guest_padded;
use crate::{Error, Image, OpenEnv, Result, StorageRef};

const SECTOR: u64 = 512;

/// The driver.
pub struct Iso;

impl FormatDriver for Iso {
    fn name(&self) -> &'static str {
        "iso"
    }
    fn description(&self) -> &'static str {
        "optical disc image (ISO 9660, UDF)"
    }
    fn capabilities(&self) -> &'static Capabilities {
        &READ_ONLY
    }
    fn detect(&self, probe: &Probe<'_>) -> Confidence {
        let start = usize::try_from(volume::FIRST).unwrap_or(usize::MAX);
        match probe.head.get(start..) {
            Some(descriptor) if volume::is_descriptor(descriptor) => 80,
            _ => 0,
        }
    }
    fn open(&self, storage: StorageRef, _options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        if env.writable {
            return Err(Error::unsupported("an image of format 'iso' cannot be written"));
        }
        let facts = volume::read(storage.as_ref())?;
        let size = storage
            .len()?
            .checked_next_multiple_of(SECTOR)
            .ok_or_else(|| Error::limit("the file is too large"))?;
        Ok(Box::new(IsoImage {
            file: storage,
            size,
            facts,
        }))
    }
}

struct IsoImage {
    file: StorageRef,
    size: u64,
    facts: serde_json::Map<String, serde_json::Value>,
}

impl Image for IsoImage {
    fn format(&self) -> &'static str {
        "iso"
    }
    fn virtual_size(&self) -> u64 {
        self.size
    }
    fn backing(&self) -> Option<BackingReference> {
        None
    }
    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo {
            specific: Some(self.facts.clone()),
            ..ImageInfo::default()
        })
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.file.clone()]
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        check_range(offset, len, self.size)?;
        let at = Some(HostPlace { file: 0, offset });
        let end = self.file.len()?;
        if offset >= end {
            return Ok(Extent {
                len,
                kind: ExtentKind::Zero { at: None },
            });
        }
        let found = self.file.extent(offset, len.min(end - offset))?;
        let kind = match (found.data, offset + found.len == end) {
            (false, _) => ExtentKind::Zero { at },
            // The last sector may be longer than the file: only the driver pads it.
            (true, last) => ExtentKind::Data {
                at,
                direct: !(last && end % SECTOR != 0),
            },
        };
        let to_the_end = offset + found.len == end;
        Ok(Extent {
            len: if to_the_end {
                len.min(self.size - offset)
            } else {
                found.len
            },
            kind,
        })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size)?;
        read_guest_padded(self.file.as_ref(), offset, buf)
    }
    fn flush(&self) -> Result<()> {
        self.file.flush()
    }
}
