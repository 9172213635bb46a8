//! Saving bitmaps.

use super::bits::{Bits, Piece};
use super::{LiveBitmaps, bitmap_table};
use crate::formats::qcow2::bitmap_table::{Bitmap, BitmapCluster};
use crate::formats::qcow2::image::Qcow2;
use crate::formats::qcow2::layout::extensions::ExtensionKind;
use crate::formats::qcow2::layout::{Autoclear, BitmapsExtension, Extension, Geometry, words_to_be};
use crate::formats::qcow2::releases::Release;
use crate::formats::qcow2::writer::Writer;
use crate::storage::Storage;
use crate::{Error, Result};

impl LiveBitmaps {
    /// Notes that table and bits of a bitmap in the file are no longer wanted after the next save.
    pub fn forget(&mut self, entry: &Bitmap, geometry: &Geometry, storage: &dyn Storage) {
        if entry.table_size == 0 {
            return;
        }
        for raw in entry.table(storage).unwrap_or_default() {
            if let Ok(BitmapCluster::At(at)) = BitmapCluster::decode(raw, geometry) {
                self.old.push((at, geometry.cluster_size()));
            }
        }
        self.old.push((entry.table_offset, u64::from(entry.table_size) * 8));
    }
}

impl Qcow2 {
    /// Saves all bitmaps that are held, and holds them no longer.
    ///
    /// Order: bits and tables and directory to new places with their refcounts, flush, header, flush, then the old places are free. Where no
    /// bits changed, the marks of being in use go from the directory where it is, which takes no space.
    pub fn save_bitmaps(&self, writer: &mut Writer) -> Result<()> {
        self.fit_bitmaps(writer);
        let Some(mut live) = writer.live.take() else {
            return Ok(());
        };
        let before = self.bitmaps_extension();
        for index in 0..live.list.len() {
            self.save_bits(writer, &mut live, index)?;
        }
        let entries: Vec<Bitmap> = live.list.iter().map(|l| l.entry.clone()).collect();
        let stored = self.bitmap_directory()?;
        if stored == entries {
            return Ok(());
        }
        if let Some(extension) = before.filter(|_| same_but_for_marks(&stored, &entries)) {
            let bytes = bitmap_table::encode(&entries);
            self.host.file.write_at(extension.directory_offset, &bytes)?;
            return self.host.flush();
        }
        let after = self.write_directory(writer, &entries)?;
        self.stabilise_refcounts(writer)?;
        self.name_directory(writer, before, after)?;
        if let Some(before) = before {
            let mut metadata = self.write_metadata();
            metadata.remove(before.directory_offset, before.directory_size);
            drop(metadata);
            live.old.push((before.directory_offset, before.directory_size));
        }
        if let Some(after) = after {
            self.write_metadata().add(after.directory_offset, after.directory_size);
        }
        for (at, len) in live.old {
            let first = at >> self.geometry.cluster_bits;
            let clusters = first..first + self.geometry.clusters(len);
            self.free_now(writer, &Release::once(clusters))?;
        }
        writer.refcounts.write_blocks()
    }

    /// Makes the header name another directory, or none. The extension may be in another sector than the bit that makes it count, and a power
    /// cut may keep one alone: the bit comes after the extension and goes before it.
    fn name_directory(
        &self,
        writer: &Writer,
        before: Option<BitmapsExtension>,
        after: Option<BitmapsExtension>,
    ) -> Result<()> {
        if before.is_some() != after.is_some() {
            self.change_header(writer, |shared| {
                shared.header.autoclear &= !Autoclear::BITMAPS;
                if after.is_some() {
                    shared
                        .extensions
                        .replace(ExtensionKind::BITMAPS, after.map(Extension::Bitmaps));
                }
            })?;
            self.host.flush()?;
        }
        self.change_header(writer, |shared| {
            shared
                .extensions
                .replace(ExtensionKind::BITMAPS, after.map(Extension::Bitmaps));
            if after.is_some() {
                shared.header.autoclear |= Autoclear::BITMAPS;
            }
        })?;
        self.host.flush()
    }

    /// Writes the bits of one bitmap to new places, where they changed.
    fn save_bits(&self, writer: &mut Writer, live: &mut LiveBitmaps, index: usize) -> Result<()> {
        let Some(one) = live.list.get(index) else { return Ok(()) };
        let Some(bits) = &one.bits else { return Ok(()) };
        let entry = one.entry.clone();
        if entry.table_size as usize == bits.pieces.len() && !bits.changed.contains(&true) && entry.table_size > 0 {
            return Ok(());
        }
        let table = self.write_pieces(writer, bits)?;
        let table_bytes = table.len() as u64 * 8;
        let at = if table.is_empty() {
            0
        } else {
            self.write_new(writer, &words_to_be(&table))?
        };
        live.forget(&entry, &self.geometry, self.host.file.as_ref());
        if let Some(one) = live.list.get_mut(index) {
            one.entry.table_offset = at;
            one.entry.table_size =
                u32::try_from(table_bytes / 8).map_err(|_| Error::limit("the bitmap is too large"))?;
        }
        Ok(())
    }

    fn write_pieces(&self, writer: &mut Writer, bits: &Bits) -> Result<Vec<u64>> {
        let mut table = Vec::with_capacity(bits.pieces.len());
        for piece in &bits.pieces {
            let place = match piece {
                Piece::Zeroes => BitmapCluster::Zeroes,
                Piece::Ones => BitmapCluster::Ones,
                Piece::Mixed(bytes) if bytes.iter().all(|b| *b == 0) => BitmapCluster::Zeroes,
                Piece::Mixed(bytes) => BitmapCluster::At(self.write_new(writer, bytes)?),
            };
            table.push(place.encode());
        }
        Ok(table)
    }

    /// Writes bytes to new clusters; gives their offset.
    pub fn write_new(&self, writer: &mut Writer, bytes: &[u8]) -> Result<u64> {
        let count = self.geometry.clusters(bytes.len() as u64);
        let at = writer.refcounts.allocate_row(count)? << self.geometry.cluster_bits;
        writer
            .refcounts
            .no_longer_fresh(at + count * self.geometry.cluster_size());
        self.host.file.write_at(at, bytes)?;
        Ok(at)
    }

    fn write_directory(&self, writer: &mut Writer, entries: &[Bitmap]) -> Result<Option<BitmapsExtension>> {
        if entries.is_empty() {
            return Ok(None);
        }
        let bytes = bitmap_table::encode(entries);
        Ok(Some(BitmapsExtension {
            count: entries.len() as u32,
            directory_size: bytes.len() as u64,
            directory_offset: self.write_new(writer, &bytes)?,
        }))
    }
}

/// Whether two directories differ at most in which bitmaps are in use.
fn same_but_for_marks(a: &[Bitmap], b: &[Bitmap]) -> bool {
    let unmarked = |bitmap: &Bitmap| Bitmap {
        in_use: false,
        ..bitmap.clone()
    };
    a.iter().map(unmarked).eq(b.iter().map(unmarked))
}
