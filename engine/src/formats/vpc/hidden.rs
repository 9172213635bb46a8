//! What a disk has past its end: programs that take the size of the same image from another field show it.

use std::sync::atomic::Ordering;

use super::blocks::Blocks;
use super::geometry::farthest_end;
use super::image::{VpcImage, reading};
use super::layout::{FOOTER, SECTOR};
use crate::image::Image;
use crate::storage::read_vec;
use crate::{Error, Result, Storage};

impl VpcImage {
    /// Refuses to zero or to cut off what this disk does not show, but programs that go by another size do.
    ///
    /// # Errors
    /// `Unsupported`, with the way to see all of the disk.
    pub(super) fn refuse_hidden(&self) -> Result<()> {
        let whole = self.blocks.as_ref().map(|b| b.hidden_end.load(Ordering::Acquire));
        if whole.is_some_and(|end| end > 0) {
            return Err(self.hides());
        }
        self.refuse_hidden_part()
    }

    /// The same where only the last block of a disk with blocks is in question.
    ///
    /// # Errors
    /// `Unsupported`, with the way to see all of the disk.
    pub(super) fn refuse_hidden_part(&self) -> Result<()> {
        let (size, far) = (self.virtual_size(), farthest_end(&reading(&self.footer).raw));
        let hidden = match &self.blocks {
            Some(blocks) => blocks.has_hidden_part(size, far)?,
            None => has_data(
                self.file.as_ref(),
                size,
                far.min(self.file.len()?.saturating_sub(FOOTER)),
            )?,
        };
        if hidden { Err(self.hides()) } else { Ok(()) }
    }

    fn hides(&self) -> Error {
        let footer = reading(&self.footer).raw;
        Error::unsupported(format!(
            "the disk ends at {} here, its geometry says {} bytes and its size field {}, and there are data past its end; open it with \
             force_size_calc=current_size or force_size_calc=chs to see them",
            self.virtual_size(),
            footer.geometry().total() * SECTOR,
            footer.current_size
        ))
    }
}

/// Whether a range of a file, which ends in it, holds anything but zeroes.
fn has_data(file: &dyn Storage, mut at: u64, end: u64) -> Result<bool> {
    while at < end {
        let found = file.extent(at, end - at)?;
        let mut len = found.len.min(end - at);
        if found.data {
            len = len.min(1 << 20);
            let bytes = usize::try_from(len).map_err(|_| Error::limit("a range past the address space"))?;
            if read_vec(file, at, bytes)?.iter().any(|byte| *byte != 0) {
                return Ok(true);
            }
        }
        at += len;
    }
    Ok(false)
}

impl Blocks {
    /// Whether the last block has data past the end of the disk at `size`, before `far`.
    fn has_hidden_part(&self, size: u64, far: u64) -> Result<bool> {
        let rest = size % self.block_size();
        let end = self.block_size().min(far.saturating_sub(size - rest));
        let block = usize::try_from(size / self.block_size()).unwrap_or(usize::MAX);
        let Some(place) = self.place_of(block)?.filter(|_| rest > 0) else {
            return Ok(false);
        };
        if !self.is_overlay() {
            let data = place + self.bitmap_size;
            return has_data(self.file.as_ref(), data + rest, data + end);
        }
        let bits = self.bitmaps.get(self.file.as_ref(), block, place)?;
        let mut at = rest;
        while at < end {
            let run = bits.run(at, end - at);
            if run.present {
                return Ok(true);
            }
            at += run.len;
        }
        Ok(false)
    }
}
