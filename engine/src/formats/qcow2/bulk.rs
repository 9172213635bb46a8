//! Filling a new image: places are given in guest order, bytes are stored by any thread, tables stay in memory until the flush.

use super::codec::Packer;
use super::image::Qcow2;
use super::layout::L2Entry;
use super::writer::Writer;
use crate::image::{BulkWrite, HostPlace, Placement, Scratch};
use crate::{Error, Image, Result};

impl BulkWrite for Qcow2 {
    fn unit(&self) -> u64 {
        self.geometry.cluster_size()
    }
    fn encodes(&self) -> bool {
        false
    }
    fn sparse_store(&self) -> bool {
        self.encryption.is_none() && self.host.leaves_holes()
    }
    fn encode(&self, data: &[u8], scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        self.refuse_packed()?;
        let level = scratch.level();
        let packer = scratch.get(|| Packer::new(self.geometry.compression, level))?;
        if data.len() == self.geometry.cluster_len() {
            return packer.pack(data);
        }
        let mut whole = data.to_vec();
        whole.resize(self.geometry.cluster_len(), 0);
        packer.pack(&whole)
    }
    fn place(&self, offset: u64, len: u64, encoded: Option<u64>) -> Result<Placement> {
        self.refuse_outside(offset, len)?;
        if len == 0 || self.geometry.in_cluster(offset) != 0 {
            return Err(Error::invalid(format!(
                "{len} bytes at {offset:#x} are not whole clusters"
            )));
        }
        let mut writer = self.lock_writer()?;
        self.prepare(&mut writer)?;
        self.note_write(&mut writer, offset, len)?;
        let placed = match encoded {
            Some(stored) => self.place_packed(&mut writer, offset, stored).map(|at| (at, stored)),
            None => self.place_row(&mut writer, offset, len),
        };
        let (at, stored) = self.settle(&mut writer, placed)?;
        self.write_back_if_full(&mut writer)?;
        let file = if encoded.is_some() { 0 } else { self.host.data_index() };
        Ok(Placement {
            guest: offset,
            at: HostPlace { file, offset: at },
            len: stored,
            encoded: encoded.is_some(),
        })
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        let at = placement.at.offset;
        if placement.encoded {
            return self.host.file.write_at(at, bytes);
        }
        let end = placement.guest.saturating_add(bytes.len() as u64);
        let rest = self.geometry.in_cluster(end);
        if self.encryption.is_some() && rest != 0 && end == self.virtual_size() {
            // What was never written would decrypt to noise, which a later growth would show.
            let mut whole = bytes.to_vec();
            whole.resize(bytes.len() + self.geometry.cluster_len() - rest as usize, 0);
            return self.write_data(placement.guest, at, &whole);
        }
        self.write_data(placement.guest, at, bytes)
    }
}

impl Qcow2 {
    /// Gives whole clusters a place in one row: where the image was preallocated the one that they have, as far as it is one. Gives the
    /// place and the bytes that have it.
    fn place_row(&self, writer: &mut Writer, offset: u64, len: u64) -> Result<(u64, u64)> {
        let geometry = &self.geometry;
        let size = geometry.cluster_size();
        let entry = self.entry(offset)?;
        let first = len.min(size);
        if let Some(at) = self.owns(writer, entry)?
            && self.touches_only_data(entry, 0, first)
        {
            return Ok((at, self.run_in_place(writer, offset, at, len, first)?));
        }
        let count = geometry.clusters(len);
        for index in geometry.l1_index(offset)..=geometry.l1_index(offset + len - 1) {
            self.ensure_table(writer, index)?;
        }
        let at = if geometry.data_file {
            offset
        } else {
            writer.refcounts.allocate_row(count)? << geometry.cluster_bits
        };
        let end = at + count * size;
        if !geometry.data_file {
            let old = writer.refcounts.old_part(at, count * size);
            if old > 0 {
                // Callers may leave zero parts out, and never store what lies past the virtual size.
                self.host.file.write_zeroes(at, old, false)?;
            }
            writer.refcounts.no_longer_fresh(end);
            self.host.reach(end);
        }
        let mut done = 0;
        while done < count {
            let guest = offset + done * size;
            let here = (geometry.l2_entries() - geometry.l2_index(guest) as u64).min(count - done);
            let entries: Vec<_> = (done..done + here).map(|n| L2Entry::data(at + n * size)).collect();
            self.replace(writer, guest, &entries, false)?;
            done += here;
        }
        Ok((at, len))
    }
}
