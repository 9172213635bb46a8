//! What is copied: one or several images, a snapshot, and reading on after errors.

use vdisk_engine::ops::{GuestSource, SourceExtent, SourceKind};
use vdisk_engine::{Chain, Result};

/// The top layer of a chain above its backing image: what lies below is left to the target's own backing image.
pub struct TopLayer<'a>(pub &'a Chain);

impl GuestSource for TopLayer<'_> {
    fn len(&self) -> u64 {
        self.0.virtual_size()
    }
    fn extent(&self, offset: u64, len: u64) -> Result<SourceExtent> {
        let extent = Chain::extent(self.0, offset, len)?;
        // Past the end of the image below the top itself decides, and reads as zeroes.
        let reaches = self.0.layers().get(1).is_some_and(|l| l.virtual_size() > offset);
        let kind = if extent.depth > 0 || (!extent.present && reaches) {
            SourceKind::Absent
        } else if extent.is_zero() {
            SourceKind::Zero
        } else {
            SourceKind::Data
        };
        Ok(SourceExtent { len: extent.len, kind })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Chain::read(self.0, offset, buf)
    }
}

/// A source whose unreadable parts read as zeroes; each is told once.
pub struct Salvage<'a>(pub &'a dyn GuestSource);

/// The smallest part that is given up.
const SECTOR: usize = 512;

impl GuestSource for Salvage<'_> {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn extent(&self, offset: u64, len: u64) -> Result<SourceExtent> {
        match self.0.extent(offset, len) {
            Ok(extent) => Ok(extent),
            // Where the map cannot be read the data may be: reading tells.
            Err(error) => {
                crate::app::warning(&format!(
                    "error while reading block status at offset {offset}: {}",
                    crate::app::sentence(&error)
                ));
                Ok(SourceExtent {
                    len: len.min(65536),
                    kind: SourceKind::Data,
                })
            }
        }
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.0.read(offset, buf).is_ok() {
            return Ok(());
        }
        for (i, part) in buf.chunks_mut(SECTOR).enumerate() {
            let at = offset + (i * SECTOR) as u64;
            if let Err(error) = self.0.read(at, part) {
                crate::app::warning(&format!(
                    "error while reading offset {at}: {}",
                    crate::app::sentence(&error)
                ));
                part.fill(0);
            }
        }
        Ok(())
    }
}
