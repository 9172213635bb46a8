//! Writing compressed clusters: one behind the other, whatever cluster borders lie between.

use super::codec::Packer;
use super::image::Qcow2;
use super::layout::L2Entry;
use super::writer::Writer;
use crate::image::NothingBelow;
use crate::{Error, Result};

impl Qcow2 {
    /// Writes one whole cluster compressed, or as it is where that saves nothing.
    pub fn write_packed(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.refuse_packed()?;
        let mut packer = Packer::new(self.geometry.compression, None)?;
        let packed = packer.pack(&self.whole_cluster(offset, buf)?)?;
        let mut writer = self.lock_writer()?;
        self.prepare(&mut writer)?;
        self.note_write(&mut writer, offset, buf.len() as u64)?;
        let done = match packed {
            None => self.write_range(&mut writer, offset, buf, &NothingBelow),
            Some(packed) => self.store_packed(&mut writer, offset, &packed),
        };
        self.settle(&mut writer, done)?;
        self.write_back_if_full(&mut writer)
    }

    /// The bytes of a cluster, filled up with zeroes at the end of the image.
    pub fn whole_cluster<'a>(&self, offset: u64, buf: &'a [u8]) -> Result<std::borrow::Cow<'a, [u8]>> {
        let size = self.geometry.cluster_size();
        if buf.len() as u64 == size && self.geometry.in_cluster(offset) == 0 {
            return Ok(buf.into());
        }
        let at_end = offset + buf.len() as u64 == self.read_shared().header.virtual_size;
        if self.geometry.in_cluster(offset) != 0 || buf.len() as u64 > size || !at_end {
            return Err(Error::invalid(format!(
                "compressed writes take whole clusters of {size} bytes, not {} at {offset:#x}",
                buf.len()
            )));
        }
        let mut whole = buf.to_vec();
        whole.resize(self.geometry.cluster_len(), 0);
        Ok(whole.into())
    }

    /// Writes packed bytes, and only then points the guest cluster at them: when that fails, it shows what it showed.
    fn store_packed(&self, writer: &mut Writer, guest: u64, packed: &[u8]) -> Result<()> {
        self.ensure_table(writer, self.geometry.l1_index(guest))?;
        let len = packed.len() as u64;
        let at = self.allocate_bytes(writer, len)?;
        self.host.file.write_at(at, packed).inspect_err(|_| {
            let bits = self.geometry.cluster_bits;
            let _ = writer.refcounts.decrement(at >> bits..((at + len - 1) >> bits) + 1);
            writer.packed_end = 0;
        })?;
        self.point_at_packed(writer, guest, at, len)
    }

    /// Gives `len` packed bytes a place and points the guest cluster at it.
    pub fn place_packed(&self, writer: &mut Writer, guest: u64, len: u64) -> Result<u64> {
        self.ensure_table(writer, self.geometry.l1_index(guest))?;
        let at = self.allocate_bytes(writer, len)?;
        self.point_at_packed(writer, guest, at, len)?;
        Ok(at)
    }

    fn point_at_packed(&self, writer: &mut Writer, guest: u64, at: u64, len: u64) -> Result<()> {
        let sector_end = (at + len).next_multiple_of(512);
        let entry = L2Entry::Compressed {
            at,
            len: sector_end - at,
        };
        self.replace(writer, guest, &[entry], false)
    }

    /// Finds room behind the last packed bytes, or in a new cluster. Each cluster that is touched has one more user.
    fn allocate_bytes(&self, writer: &mut Writer, len: u64) -> Result<u64> {
        let (bits, size) = (self.geometry.cluster_bits, self.geometry.cluster_size());
        let mut at = writer.packed_end;
        if at != 0 && writer.refcounts.get(at >> bits)? == writer.refcounts.width().max() {
            at = 0;
        }
        let room = if at == 0 { 0 } else { size - at % size };
        if room < len {
            let new = writer.refcounts.allocate(1)?.start;
            if at == 0 || at.next_multiple_of(size) != new << bits {
                at = new << bits;
            } else {
                // Goes on from the old cluster into the new one, which is counted already.
                writer.refcounts.increment(at >> bits..new).inspect_err(|_| {
                    let _ = writer.refcounts.decrement(new..new + 1);
                })?;
            }
        } else {
            writer.refcounts.increment(at >> bits..(at >> bits) + 1)?;
        }
        let end = at + len;
        writer.refcounts.no_longer_fresh(end.next_multiple_of(size));
        writer.packed_end = if end.is_multiple_of(size) { 0 } else { end };
        Ok(at)
    }
}
