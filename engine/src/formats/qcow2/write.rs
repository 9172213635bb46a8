//! Writing guest data: in place where the cluster is ours alone, else to a new cluster with the rest copied.
//!
//! Order: the data is written first; the tables that point to it change in memory and follow in [`Qcow2::write_back`].

use super::image::Qcow2;
use super::layout::{L2Entry, Subclusters};
use super::locate::Kind;
use super::writer::Writer;
use crate::Result;
use crate::image::Below;

impl Qcow2 {
    /// Writes a range inside the virtual size.
    pub fn write_plain(&self, offset: u64, buf: &[u8], below: &dyn Below) -> Result<()> {
        let mut writer = self.lock_writer()?;
        self.prepare(&mut writer)?;
        self.note_write(&mut writer, offset, buf.len() as u64)?;
        let done = self.write_range(&mut writer, offset, buf, below);
        self.settle(&mut writer, done)
    }

    /// Writes a range with the writer's lock held.
    pub fn write_range(&self, writer: &mut Writer, mut offset: u64, mut buf: &[u8], below: &dyn Below) -> Result<()> {
        while !buf.is_empty() {
            let done = self.write_step(writer, offset, buf, below)?;
            offset += done as u64;
            buf = buf.get(done..).unwrap_or_default();
            self.write_back_if_full(writer)?;
        }
        Ok(())
    }

    /// Writes the tables when so much of them changed, or is to be given back, that memory would not hold much more.
    pub fn write_back_if_full(&self, writer: &mut Writer) -> Result<()> {
        if writer.released.are_many() || self.read_shared().l2.is_full() {
            self.write_back(writer)?;
        }
        Ok(())
    }

    /// Writes the longest beginning of `buf` that can be treated alike; gives its length.
    fn write_step(&self, writer: &mut Writer, offset: u64, buf: &[u8], below: &dyn Below) -> Result<usize> {
        let size = self.geometry.cluster_size();
        let in_cluster = self.geometry.in_cluster(offset);
        let entry = self.entry(offset)?;
        let part = (size - in_cluster).min(buf.len() as u64);
        let owned = self.owns(writer, entry)?;
        if let Some(at) = owned
            && self.touches_only_data(entry, in_cluster, part)
        {
            let len = self.run_in_place(writer, offset, at, buf.len() as u64, part)?;
            let part = buf.get(..len as usize).unwrap_or(buf);
            self.write_data(offset, at + in_cluster, part)?;
            return Ok(part.len());
        }
        self.ensure_table(writer, self.geometry.l1_index(offset))?;
        if owned.is_none() && in_cluster == 0 && buf.len() as u64 >= size {
            return self.write_new_clusters(writer, offset, buf);
        }
        let part = buf.get(..part as usize).unwrap_or(buf);
        self.write_cluster(writer, offset, part, (entry, owned), below)?;
        Ok(part.len())
    }

    pub fn touches_only_data(&self, entry: L2Entry, in_cluster: u64, len: u64) -> bool {
        let touched = self.subclusters(in_cluster, in_cluster + len);
        matches!(entry, L2Entry::Standard { subs, .. } if subs.data & touched == touched)
    }

    /// The subclusters that a range of a cluster touches.
    pub fn subclusters(&self, from: u64, to: u64) -> u32 {
        if !self.geometry.extended_l2 {
            return u32::MAX;
        }
        let size = self.geometry.subcluster_size();
        let (first, last) = (from / size, (to.max(from + 1) - 1) / size);
        (u32::MAX >> (31 - (last - first).min(31))) << first
    }

    /// How far a write in place can go on into the next clusters.
    pub fn run_in_place(&self, writer: &mut Writer, offset: u64, at: u64, len: u64, first: u64) -> Result<u64> {
        let size = self.geometry.cluster_size();
        let mut run = first;
        let start = self.geometry.cluster_start(offset);
        let more = (len - first).div_ceil(size);
        if more == 0 || self.geometry.l1_index(start) != self.geometry.l1_index(start + size) {
            return Ok(run);
        }
        for (n, entry) in (1..).zip(self.entries(start + size, more)?) {
            let part = (len - run).min(size);
            let follows = self.owns(writer, entry)? == at.checked_add(n * size);
            if !follows || !self.touches_only_data(entry, 0, part) {
                break;
            }
            run += part;
        }
        Ok(run)
    }

    /// Writes whole clusters to new places.
    fn write_new_clusters(&self, writer: &mut Writer, offset: u64, buf: &[u8]) -> Result<usize> {
        let size = self.geometry.cluster_size();
        let mut count = 0;
        for entry in self.entries(offset, buf.len() as u64 / size)? {
            if self.owns(writer, entry)?.is_some() {
                break;
            }
            count += 1;
        }
        let (at, count) = self.allocate_data(writer, offset, count)?;
        let part = buf.get(..(count * size) as usize).unwrap_or(buf);
        if !self.geometry.data_file {
            writer.refcounts.no_longer_fresh(at + count * size);
        }
        if let Err(error) = self.write_data(offset, at, part) {
            self.undo_allocation(writer, at, count);
            return Err(error);
        }
        let entries: Vec<_> = (0..count).map(|n| L2Entry::data(at + n * size)).collect();
        self.replace(writer, offset, &entries, false)?;
        Ok(part.len())
    }

    /// Writes a part of one cluster that is not simply there yet.
    fn write_cluster(
        &self,
        writer: &mut Writer,
        offset: u64,
        data: &[u8],
        (entry, owned): (L2Entry, Option<u64>),
        below: &dyn Below,
    ) -> Result<()> {
        let start = self.geometry.cluster_start(offset);
        let (from, to) = (offset - start, offset - start + data.len() as u64);
        let touched = self.subclusters(from, to);
        let old = match entry {
            L2Entry::Standard { subs, .. } => subs,
            L2Entry::Compressed { .. } => Subclusters::DATA,
        };
        let at = match owned {
            Some(at) => at,
            None => self.allocate_data(writer, offset, 1)?.0,
        };
        // What the place must hold besides the new data: where it is new, all that the old one held.
        let needed = match owned {
            Some(_) => touched & !old.data,
            None => touched | old.data,
        };
        // Zero bytes of a new place can be left out, unless they stand for something else.
        let plain = !self.geometry.data_file && self.encryption.is_none();
        let fresh = owned.is_none() && plain && writer.refcounts.is_fresh(at);
        if !self.geometry.data_file {
            writer.refcounts.no_longer_fresh(at + self.geometry.cluster_size());
        }
        let written = self.copy_around(start, at, (from, data), needed, fresh, below);
        if let Err(error) = written {
            if owned.is_none() {
                self.undo_allocation(writer, at, 1);
            }
            return Err(error);
        }
        let subs = Subclusters {
            data: old.data | touched,
            zero: old.zero & !touched,
        };
        let new = L2Entry::Standard {
            at: Some(at),
            copied: true,
            subs,
        };
        self.replace(writer, start, &[new], false)
    }

    /// Writes `data` at `from` in the host cluster `at`, and around it what the guest saw so far in the subclusters `needed`.
    fn copy_around(
        &self,
        guest: u64,
        at: u64,
        (from, data): (u64, &[u8]),
        needed: u32,
        fresh: bool,
        below: &dyn Below,
    ) -> Result<()> {
        let to = from + data.len() as u64;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (first, last) in self.runs(needed) {
            let left = (first, last.min(from));
            let right = (first.max(to), last);
            for (a, b) in [left, right].into_iter().filter(|(a, b)| a < b) {
                let old = self.old_bytes(guest + a, b - a, below)?;
                if fresh && old.iter().all(|byte| *byte == 0) {
                    continue;
                }
                if b == from {
                    before = old;
                } else if a == to {
                    after = old;
                } else {
                    self.write_data(guest + a, at + a, &old)?;
                }
            }
        }
        let start = from - before.len() as u64;
        if before.is_empty() && after.is_empty() {
            return self.write_data(guest + from, at + from, data);
        }
        before.extend_from_slice(data);
        before.extend_from_slice(&after);
        self.write_data(guest + start, at + start, &before)
    }

    /// The byte ranges of a cluster that a set of subclusters covers, merged.
    fn runs(&self, mask: u32) -> Vec<(u64, u64)> {
        let size = self.geometry.subcluster_size();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for n in (0..self.geometry.subclusters()).filter(|n| mask >> n & 1 == 1) {
            let start = u64::from(n) * size;
            match runs.last_mut() {
                Some(last) if last.1 == start => last.1 += size,
                _ => runs.push((start, start + size)),
            }
        }
        runs
    }

    /// What the guest sees in a range, from this layer and below; zeroes past the virtual size.
    fn old_bytes(&self, guest: u64, len: u64, below: &dyn Below) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        let mut at = guest;
        while at < guest + len {
            let (run, size) = {
                let shared = self.read_shared();
                (self.locate(&shared, at, guest + len - at)?, shared.header.virtual_size)
            };
            let start = (at - guest) as usize;
            let part = bytes.get_mut(start..start + run.len as usize).unwrap_or_default();
            match run.kind {
                Kind::Zero { .. } => {}
                Kind::Unallocated => {
                    let inside = part.len().min(size.saturating_sub(at) as usize);
                    if let Some(part) = part.get_mut(..inside).filter(|p| !p.is_empty())
                        && !below.is_zero(at, inside as u64)?
                    {
                        below.read(at, part)?;
                    }
                }
                Kind::Data { .. } | Kind::Packed { .. } => self.read_own(at, part)?,
            }
            at += run.len;
        }
        Ok(bytes)
    }

    /// Whether the guest sees zeroes in a range, as far as that is known without reading.
    pub fn is_zero(&self, guest: u64, len: u64, below: &dyn Below) -> Result<bool> {
        let mut at = guest;
        while at < guest + len {
            let (run, size) = {
                let shared = self.read_shared();
                (self.locate(&shared, at, guest + len - at)?, shared.header.virtual_size)
            };
            let zero = match run.kind {
                Kind::Zero { .. } => true,
                Kind::Unallocated => at >= size || below.is_zero(at, run.len.min(size - at))?,
                Kind::Data { .. } | Kind::Packed { .. } => false,
            };
            if !zero {
                return Ok(false);
            }
            at += run.len;
        }
        Ok(true)
    }

    /// Writes guest data that is not compressed.
    pub fn write_data(&self, guest: u64, at: u64, bytes: &[u8]) -> Result<()> {
        match &self.encryption {
            None => self.host.data().write_at(at, bytes),
            Some(encryption) => self.write_encrypted(encryption, guest, at, bytes),
        }
    }
}
