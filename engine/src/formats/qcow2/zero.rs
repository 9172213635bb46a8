//! Zeroes without data, and giving space back.

use super::image::Qcow2;
use super::layout::{L2Entry, Subclusters};
use super::locate::Kind;
use super::writer::Writer;
use crate::Result;
use crate::image::Below;

/// Zero bytes written at once where tables cannot say it; whole clusters where they are larger.
const ZEROES: u64 = 64 << 10;

/// What happens to whole clusters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Clear {
    /// They read as zeroes; space is kept.
    Zero,
    /// They read as zeroes; space is given back.
    ZeroUnmap,
    /// The guest no longer needs them.
    Discard,
}

impl Qcow2 {
    /// Makes a range read as zeroes.
    pub fn zero_range(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        let mut writer = self.lock_writer()?;
        self.prepare(&mut writer)?;
        let how = if unmap { Clear::ZeroUnmap } else { Clear::Zero };
        self.note_write(&mut writer, offset, len)?;
        let done = self.zero_parts(&mut writer, offset, offset + len, how, below);
        self.settle(&mut writer, done)
    }

    fn zero_parts(&self, writer: &mut Writer, from: u64, to: u64, how: Clear, below: &dyn Below) -> Result<()> {
        let (version, _, virtual_size) = self.basics();
        let size = self.geometry.subcluster_size();
        let first = from.next_multiple_of(size);
        let last = if to == virtual_size {
            to.next_multiple_of(size)
        } else {
            to / size * size
        };
        if first >= last {
            return self.zero_piece(writer, from, to, below);
        }
        self.zero_piece(writer, from, first, below)?;
        match version {
            ..3 => self.zero_without_flags(writer, first, last, how, below)?,
            _ => self.clear_aligned(writer, first, last, how)?,
        }
        if last < to {
            self.zero_piece(writer, last, to, below)?;
        }
        Ok(())
    }

    /// Whole clusters of version 2: nothing where that reads as zeroes, else bytes.
    fn zero_without_flags(
        &self,
        writer: &mut Writer,
        mut at: u64,
        to: u64,
        how: Clear,
        below: &dyn Below,
    ) -> Result<()> {
        let size = self.geometry.cluster_size();
        if self.is_zero_unallocated(at, to, below)? {
            return self.clear_aligned(writer, at, to, how);
        }
        while at < to {
            let free = self.is_zero_unallocated(at, at + size, below)?;
            let mut end = at + size;
            while end < to && self.is_zero_unallocated(end, end + size, below)? == free {
                end += size;
            }
            match free {
                true => self.clear_aligned(writer, at, end, how)?,
                false => self.write_zero_bytes(writer, at, end, below)?,
            }
            at = end;
        }
        Ok(())
    }

    /// Whether whole clusters of version 2 read as zeroes without anything in the tables. An overlay does not count on its base; what has none
    /// goes by `below`, since a base may be about to come.
    fn is_zero_unallocated(&self, from: u64, to: u64, below: &dyn Below) -> Result<bool> {
        let (_, backed, virtual_size) = self.basics();
        Ok(!backed && below.is_zero(from, to.min(virtual_size).saturating_sub(from))?)
    }

    /// Writes zeroes as data, as far as the disk goes.
    fn write_zero_bytes(&self, writer: &mut Writer, mut at: u64, to: u64, below: &dyn Below) -> Result<()> {
        let to = to.min(self.basics().2);
        let step = ZEROES.max(self.geometry.cluster_size());
        while at < to {
            let end = ((at / step + 1) * step).min(to);
            self.write_range(writer, at, &vec![0; (end - at) as usize], below)?;
            at = end;
        }
        Ok(())
    }

    /// Version, whether there is a layer below, virtual size.
    fn basics(&self) -> (u32, bool, u64) {
        let backed = self.has_base();
        let shared = self.read_shared();
        (shared.header.version, backed, shared.header.virtual_size)
    }

    /// Zeroes less than a subcluster (at most two pieces of two neighbours): by its flag where the rest is zero anyway, else by bytes.
    fn zero_piece(&self, writer: &mut Writer, from: u64, to: u64, below: &dyn Below) -> Result<()> {
        let size = self.geometry.subcluster_size();
        let has_flags = self.basics().0 >= 3;
        let mut at = from;
        while at < to {
            let start = at / size * size;
            let end = to.min(start + size);
            let around = [(start, at), (end, start + size)];
            let sayable = has_flags || self.is_zero_unallocated(start, start + size, below)?;
            let free = sayable && self.has_no_data(start)? && {
                let known: Result<Vec<bool>> = around.iter().map(|(a, b)| self.is_zero(*a, b - a, below)).collect();
                known?.into_iter().all(|zero| zero)
            };
            if free {
                self.clear_aligned(writer, start, start + size, Clear::Zero)?;
            } else {
                self.write_zero_bytes(writer, at, end, below)?;
            }
            at = end;
        }
        Ok(())
    }

    fn has_no_data(&self, guest: u64) -> Result<bool> {
        let run = self.locate(&self.read_shared(), guest, 1)?;
        Ok(matches!(run.kind, Kind::Unallocated | Kind::Zero { .. }))
    }

    /// Clears a range of whole subclusters.
    pub fn clear_aligned(&self, writer: &mut Writer, from: u64, to: u64, how: Clear) -> Result<()> {
        let size = self.geometry.cluster_size();
        if self.mirrors_guest() {
            let end = to.min(self.read_shared().header.virtual_size);
            if from < end {
                self.host.data().write_zeroes(from, end - from, how != Clear::Zero)?;
            }
        }
        let mut at = from;
        while at < to {
            let start = self.geometry.cluster_start(at);
            if at > start || to < start + size {
                let end = to.min(start + size);
                self.clear_part(writer, at, end)?;
                at = end;
                continue;
            }
            let table_end = (start / self.geometry.l2_span() + 1).saturating_mul(self.geometry.l2_span());
            let end = self.geometry.cluster_start(to).min(table_end);
            self.clear_clusters(writer, start, (end - start) / size, how)?;
            self.write_back_if_full(writer)?;
            at = end;
        }
        Ok(())
    }

    /// Whether the data file holds exactly what the guest sees.
    fn mirrors_guest(&self) -> bool {
        use super::layout::Autoclear;
        self.host.data.is_some() && self.read_shared().header.autoclear & Autoclear::RAW_DATA_FILE != 0
    }

    /// Whole clusters of one L2 table.
    fn clear_clusters(&self, writer: &mut Writer, guest: u64, count: u64, how: Clear) -> Result<()> {
        let (version, backed, _) = self.basics();
        let old = self.entries(guest, count)?;
        let new: Vec<_> = old.iter().map(|e| cleared(*e, how, version, backed)).collect();
        let Some(first) = old.iter().zip(&new).position(|(a, b)| a != b) else {
            return Ok(());
        };
        let last = old.iter().zip(&new).rposition(|(a, b)| a != b).unwrap_or(first);
        self.ensure_table(writer, self.geometry.l1_index(guest))?;
        let start = guest + first as u64 * self.geometry.cluster_size();
        let new = new.get(first..=last).unwrap_or_default();
        let discard = how != Clear::Zero;
        if discard && self.geometry.data_file && !self.mirrors_guest() {
            let len = new.len() as u64 * self.geometry.cluster_size();
            self.host.data().discard(start, len)?;
        }
        self.replace(writer, start, new, discard)
    }

    /// Whole subclusters of a part of one cluster: they become zero, and space is kept.
    fn clear_part(&self, writer: &mut Writer, from: u64, to: u64) -> Result<()> {
        let start = self.geometry.cluster_start(from);
        let mask = self.subclusters(from - start, to - start);
        let new = match self.entry(from)? {
            L2Entry::Standard { at, copied, subs } => L2Entry::Standard {
                at,
                copied,
                subs: Subclusters {
                    data: subs.data & !mask,
                    zero: subs.zero | mask,
                },
            },
            L2Entry::Compressed { .. } => {
                let zeroes = vec![0; (to - from) as usize];
                return self.write_range(writer, from, &zeroes, &crate::image::NothingBelow);
            }
        };
        self.ensure_table(writer, self.geometry.l1_index(from))?;
        self.replace(writer, start, &[new], false)
    }

    /// Gives back the whole clusters of a range. What the guest sees there afterwards is zeroes.
    pub fn discard_range(&self, offset: u64, len: u64) -> Result<()> {
        let mut writer = self.lock_writer()?;
        self.prepare(&mut writer)?;
        // As asked for, not as far as clusters go: what QEMU's bitmaps record of a discard.
        self.note_write(&mut writer, offset, len)?;
        let (version, backed, virtual_size) = self.basics();
        // Version 2 cannot say "zero": the layer below would show.
        if version < 3 && backed {
            return Ok(());
        }
        let size = self.geometry.cluster_size();
        let end = offset + len;
        let from = offset.next_multiple_of(size);
        let to = if end == virtual_size {
            end.next_multiple_of(size)
        } else {
            end / size * size
        };
        if from < to {
            let done = self.clear_aligned(&mut writer, from, to, Clear::Discard);
            self.settle(&mut writer, done)?;
        }
        Ok(())
    }
}

/// What becomes of an entry.
fn cleared(old: L2Entry, how: Clear, version: u32, backed: bool) -> L2Entry {
    let allocated = !matches!(old, L2Entry::Standard { at: None, .. });
    let zero = if version < 3 {
        L2Entry::UNALLOCATED
    } else {
        L2Entry::ZERO
    };
    match (how, old) {
        (Clear::Discard, _) => {
            if backed || allocated {
                zero
            } else {
                old
            }
        }
        (Clear::Zero, L2Entry::Standard { at, copied, .. }) if version >= 3 => L2Entry::Standard {
            at,
            copied,
            subs: Subclusters::ZERO,
        },
        (Clear::Zero | Clear::ZeroUnmap, _) => {
            if version < 3 && !allocated {
                old
            } else {
                zero
            }
        }
    }
}
