//! Bitmaps in memory: while they may change, and read from the file piece by piece where they do not.

use super::bits::{Bits, Piece, Ranges};
use super::{Live, LiveBitmaps};
use crate::formats::qcow2::bitmap_table::{self, Bitmap, BitmapCluster, MAX_BYTES};
use crate::formats::qcow2::image::Qcow2;
use crate::formats::qcow2::writer::Writer;
use crate::{Error, Result};

impl Qcow2 {
    /// Before guest data changes: bitmaps that record writes are marked as in use.
    pub fn hold_recording_bitmaps(&self, writer: &mut Writer) -> Result<()> {
        if writer.live.is_none() && self.bitmaps_extension().is_some() {
            self.hold_bitmaps(writer, |bitmap| bitmap.auto)?;
        }
        Ok(())
    }

    /// Loads the bitmaps of a kind and marks them as in use in the file.
    pub(super) fn hold_bitmaps(&self, writer: &mut Writer, wanted: impl Fn(&Bitmap) -> bool) -> Result<()> {
        if writer.live.is_some() {
            self.save_bitmaps(writer)?;
        }
        let mut live = LiveBitmaps::default();
        let directory = self.bitmap_directory()?;
        let held = |entry: &&Bitmap| wanted(entry) && !entry.in_use;
        let size = self.read_shared().header.virtual_size;
        self.refuse_large_bitmaps(directory.iter().filter(held), size)?;
        for entry in &directory {
            let bits = if held(&entry) {
                Some(self.load_bits(entry)?)
            } else {
                None
            };
            live.list.push(Live {
                entry: entry.clone(),
                bits,
            });
        }
        let marked: Vec<Bitmap> = live
            .list
            .iter()
            .map(|l| Bitmap {
                in_use: l.entry.in_use || l.bits.is_some(),
                ..l.entry.clone()
            })
            .collect();
        if let Some(extension) = self.bitmaps_extension()
            && marked != directory
        {
            // Nothing but flags changes, so the directory can stay where it is.
            let bytes = bitmap_table::encode(&marked);
            self.host.file.write_at(extension.directory_offset, &bytes)?;
            self.host.flush()?;
        }
        writer.live = Some(live);
        Ok(())
    }

    /// Counts the bits of bitmaps in full, clean ones too: writes may make them dirty.
    ///
    /// # Errors
    /// `LimitExceeded` when one is larger than a bitmap can be, or all of them more than may be held.
    pub(super) fn refuse_large_bitmaps<'a>(
        &self,
        bitmaps: impl IntoIterator<Item = &'a Bitmap>,
        virtual_size: u64,
    ) -> Result<()> {
        let (mut sum, most) = (0u64, self.limits.bitmap_bytes);
        for bitmap in bitmaps {
            let pieces = Bits::pieces_for(virtual_size, bitmap.granularity_bits, self.geometry.cluster_len());
            let bytes = pieces.saturating_mul(self.geometry.cluster_size());
            if bytes > MAX_BYTES {
                return Err(Error::limit(format!(
                    "bitmap \"{}\" would need {bytes} bytes for {virtual_size}; it can have {MAX_BYTES}: use a coarser granularity",
                    bitmap.name.escape_debug()
                )));
            }
            sum = sum.saturating_add(bytes);
            if sum > most {
                return Err(Error::limit(format!(
                    "the dirty bitmaps need more than {most} bytes of memory: remove some, or stop those that record"
                )));
            }
        }
        Ok(())
    }

    fn load_bits(&self, entry: &Bitmap) -> Result<Bits> {
        let (table, size) = self.pieces_table(entry)?;
        let pieces: Result<Vec<Piece>> = table.iter().map(|raw| self.load_piece(*raw)).collect();
        let len = self.geometry.cluster_len();
        Ok(Bits::stored(pieces?, size, entry.granularity_bits, len))
    }

    /// Gives the dirty ranges of a bitmap as it is in the file, with one piece in memory at a time.
    pub(super) fn each_stored(&self, entry: &Bitmap, each: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let (table, size) = self.pieces_table(entry)?;
        let mut ranges = Ranges::new(size, entry.granularity_bits, each);
        let bits = self.geometry.cluster_size() * 8;
        for (n, raw) in (0..).zip(table) {
            ranges.piece(n * bits, bits, &self.load_piece(raw)?)?;
        }
        ranges.finish()
    }

    /// The table of a bitmap, and the virtual size that it fits.
    fn pieces_table(&self, entry: &Bitmap) -> Result<(Vec<u64>, u64)> {
        let size = self.read_shared().header.virtual_size;
        let wanted = Bits::pieces_for(size, entry.granularity_bits, self.geometry.cluster_len());
        if u64::from(entry.table_size) != wanted {
            return Err(Error::corrupt(format!(
                "bitmap \"{}\" needs a table of {wanted} entries, found {}",
                entry.name.escape_debug(),
                entry.table_size
            )));
        }
        Ok((entry.table(self.host.file.as_ref())?, size))
    }

    fn load_piece(&self, raw: u64) -> Result<Piece> {
        Ok(match BitmapCluster::decode(raw, &self.geometry)? {
            BitmapCluster::Zeroes => Piece::Zeroes,
            BitmapCluster::Ones => Piece::Ones,
            BitmapCluster::At(at) => Piece::Mixed(crate::storage::read_vec(
                self.host.file.as_ref(),
                at,
                self.geometry.cluster_len(),
            )?),
        })
    }

    /// Notes a change of guest data, before it begins: a part of one that fails may have changed too.
    pub fn note_write(&self, writer: &mut Writer, offset: u64, len: u64) -> Result<()> {
        for live in writer
            .live
            .iter_mut()
            .flat_map(|l| &mut l.list)
            .filter(|l| l.entry.auto)
        {
            if let Some(bits) = &mut live.bits {
                bits.mark(offset, len);
            }
        }
        Ok(())
    }

    /// Before the virtual size becomes `new`: all bitmaps must be known, for all must follow.
    pub fn hold_all_bitmaps(&self, writer: &mut Writer, new: u64) -> Result<()> {
        if self.bitmaps_extension().is_none() {
            return Ok(());
        }
        self.refuse_large_bitmaps(&self.bitmap_directory()?, new)?;
        self.hold_bitmaps(writer, |_| true)?;
        let unsaved = writer.live.iter().flat_map(|l| &l.list).find(|l| l.bits.is_none());
        match unsaved {
            None => Ok(()),
            Some(live) => {
                let name = live.entry.name.escape_debug().to_string();
                self.save_bitmaps(writer)?;
                Err(Error::unsupported(format!(
                    "bitmap \"{name}\" was not saved properly; remove it before the size changes"
                )))
            }
        }
    }

    /// Follows the virtual size: new bits are clean.
    pub fn fit_bitmaps(&self, writer: &mut Writer) {
        let virtual_size = self.read_shared().header.virtual_size;
        for bits in writer
            .live
            .iter_mut()
            .flat_map(|l| &mut l.list)
            .filter_map(|l| l.bits.as_mut())
        {
            bits.resize(virtual_size);
        }
    }
}
