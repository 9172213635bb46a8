//! An open image: finished ones are read, new ones are filled.

use std::sync::{Arc, Mutex};

use libdeflater::Decompressor;

use super::fill::Filling;
use super::layout::{self, HEADER_LEN, Header};
use crate::formats::common::{be64, check_range, lock, pieces, read_table};
use crate::image::{BackingReference, BulkWrite, Extent, ExtentKind, ImageInfo};
use crate::storage::{read_padded, read_vec};
use crate::{Error, Image, OpenEnv, Result, StorageRef};

/// A block that a partial read inflated, kept for the next one.
type LastBlock = Option<(u64, Arc<Vec<u8>>)>;

/// An open layer.
pub(super) struct CloopImage {
    pub(super) file: StorageRef,
    pub(super) header: Header,
    offsets: Vec<u64>,
    last: Mutex<LastBlock>,
    /// Nothing was ever stored: all blocks read as zeroes.
    is_new: bool,
    /// There while the image is new and open for writing.
    pub(super) filling: Option<Filling>,
}

impl CloopImage {
    pub(super) fn open(file: StorageRef, env: &OpenEnv<'_>) -> Result<Self> {
        let mut bytes = [0; HEADER_LEN];
        read_padded(file.as_ref(), 0, &mut bytes)?;
        let header = layout::check(&bytes)?;
        if header.block > env.limits.decompressed_bytes {
            return Err(Error::limit(format!(
                "blocks of {} bytes exceed the limit of {}",
                header.block, env.limits.decompressed_bytes
            )));
        }
        let what = "the table of offsets";
        let raw = read_table(file.as_ref(), what, HEADER_LEN as u64, header.table_bytes(), env.limits)?;
        let offsets: Vec<u64> = raw.chunks_exact(8).map(be64).collect();
        let len = file.len()?;
        let is_new = offsets.iter().all(|o| *o == 0) && len == header.data_at();
        if !is_new {
            layout::check_offsets(&header, &offsets, len)?;
        }
        Ok(Self {
            is_new,
            filling: (is_new && env.writable).then(|| Filling::new(&header)),
            file,
            header,
            offsets,
            last: Mutex::new(None),
        })
    }

    /// Inflates one whole block into `out`.
    fn inflate(&self, block: u64, out: &mut [u8]) -> Result<()> {
        let index = usize::try_from(block).unwrap_or(usize::MAX);
        let bounds = (self.offsets.get(index), self.offsets.get(index.saturating_add(1)));
        let (Some(at), Some(end)) = bounds else {
            return Err(Error::invalid(format!("there is no block {block}")));
        };
        let len = usize::try_from(end.saturating_sub(*at)).unwrap_or(usize::MAX);
        let packed = read_vec(self.file.as_ref(), *at, len)?;
        let place = || format!("{}: block {block}", self.file.name());
        match Decompressor::new().zlib_decompress(&packed, out) {
            Ok(n) if n == out.len() => Ok(()),
            Ok(n) => {
                Err(Error::corrupt(format!("the block inflates to {n} bytes instead of {}", out.len())).at(place()))
            }
            Err(e) => Err(Error::corrupt("the block cannot be inflated").because(e).at(place())),
        }
    }

    /// One block, inflated now or by the read before.
    fn block(&self, block: u64) -> Result<Arc<Vec<u8>>> {
        if let Some((number, bytes)) = lock(&self.last).as_ref()
            && *number == block
        {
            return Ok(bytes.clone());
        }
        let mut bytes = vec![0; usize::try_from(self.header.block).unwrap_or(0)];
        self.inflate(block, &mut bytes)?;
        let bytes = Arc::new(bytes);
        *lock(&self.last) = Some((block, bytes.clone()));
        Ok(bytes)
    }
}

impl Image for CloopImage {
    fn format(&self) -> &'static str {
        "cloop"
    }
    fn virtual_size(&self) -> u64 {
        self.header.blocks * self.header.block
    }
    fn backing(&self) -> Option<BackingReference> {
        None
    }
    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo::default())
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.file.clone()]
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        check_range(offset, len, self.virtual_size())?;
        let kind = if self.is_new {
            ExtentKind::Zero { at: None }
        } else {
            ExtentKind::Compressed
        };
        Ok(Extent { len, kind })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.virtual_size())?;
        match &self.filling {
            Some(filling) if filling.is_started() => {
                return Err(Error::unsupported(
                    "a cloop image can be read after it was filled and opened again",
                ));
            }
            _ if self.is_new => {
                buf.fill(0);
                return Ok(());
            }
            _ => {}
        }
        for piece in pieces(offset, buf.len(), self.header.block) {
            let Some(part) = buf.get_mut(piece.range) else { continue };
            if part.len() as u64 == self.header.block {
                self.inflate(piece.index, part)?;
                continue;
            }
            let block = self.block(piece.index)?;
            let start = usize::try_from(piece.start).unwrap_or(usize::MAX);
            if let Some(from) = block.get(start..start.saturating_add(part.len())) {
                part.copy_from_slice(from);
            }
        }
        Ok(())
    }
    fn write_compressed(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let mut scratch = crate::image::Scratch::default();
        let packed = self.encode(buf, &mut scratch)?.unwrap_or_default();
        let placement = self.place(offset, buf.len() as u64, Some(packed.len() as u64))?;
        self.store(&placement, &packed)
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        self.filling.is_some().then_some(self)
    }
    fn flush(&self) -> Result<()> {
        match &self.filling {
            Some(filling) => filling.finish(self),
            None => self.file.flush(),
        }
    }
}
