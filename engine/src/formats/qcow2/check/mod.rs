//! Checking: everything that is referred to is counted and compared with the refcounts.

mod counts;
mod flags;
mod rebuild;
mod repair;
mod walk;

use self::walk::Walk;
use super::image::Qcow2;
use super::layout::refcounts::RefcountWidth;
use super::writer::Writer;
use crate::image::{CheckReport, Repair};
use crate::{Control, Error, Result};

pub(super) use counts::Counts;

/// Bytes of refcount blocks that are read at once.
const READ_AHEAD: u64 = 1 << 20;

impl Qcow2 {
    /// Checks, and mends what `repair` allows.
    pub fn check_image(&self, repair: Repair, control: &Control) -> Result<CheckReport> {
        match (&self.writer, repair) {
            (None, Repair::No) => self.find_faults(control),
            (None, _) => Err(Error::denied("the image is open for reading only").at(self.host.file.name())),
            (Some(_), _) => {
                let mut writer = self.lock_writer()?;
                self.write_back(&mut writer)?;
                self.repair_image(&mut writer, repair, control)
            }
        }
    }

    /// Checks without changing anything.
    fn find_faults(&self, control: &Control) -> Result<CheckReport> {
        let mut walk = Walk::new(self)?;
        walk.run(&self.read_shared(), control)?;
        self.compare_refcounts(&mut walk, Repair::No)?;
        self.check_flags(&mut walk, None)?;
        self.check_conflicts(&mut walk);
        walk.note_incomplete(false);
        Ok(walk.report)
    }

    /// Structures that overlap keep an image from being written, whatever their refcounts say. Most are told by what they are.
    fn check_conflicts(&self, walk: &mut Walk<'_>) {
        if walk.report.corruptions == 0
            && let Err(error) = self.read_metadata().refuse_conflicts()
        {
            walk.corruption(|| format!("ERROR {error}"));
        }
    }

    /// Counts all references of an image that must be sound, but for clusters with more users than a refcount can say; gives how many those are.
    ///
    /// # Errors
    /// `Corrupt` when anything else is wrong.
    pub fn count_references(&self, control: &Control) -> Result<(Counts, u64)> {
        let mut walk = Walk::new(self)?;
        walk.run(&self.read_shared(), control)?;
        self.compare_refcounts(&mut walk, Repair::No)?;
        if walk.report.corruptions > walk.too_many_users {
            return Err(Error::corrupt("the image has errors; repair it first"));
        }
        Ok((walk.counts, walk.too_many_users))
    }

    /// Compares refcount blocks with what was counted, and changes those that differ where `repair` allows.
    ///
    /// Raising a refcount is always safe; lowering one is, because nothing was found that refers to the cluster.
    fn compare_refcounts(&self, walk: &mut Walk<'_>, repair: Repair) -> Result<()> {
        let width = RefcountWidth::new(self.read_shared().header.refcount_order);
        let size = self.geometry.cluster_len();
        let per_block = width.count(size as u64);
        let mut last = None;
        let blocks: Vec<(usize, u64)> = walk.blocks.iter().map(|(i, at)| (*i, *at)).collect();
        let mut rest = blocks.as_slice();
        while let Some((_, first)) = rest.first() {
            let row = rest
                .iter()
                .zip(0u64..)
                .take((READ_AHEAD as usize / size).max(1))
                .take_while(|((_, at), n)| Some(*at) == first.checked_add(n * size as u64))
                .count();
            let (now, later) = rest.split_at(row);
            let mut bytes = vec![0; row * size];
            self.host.file.read_at(*first, &mut bytes)?;
            for ((index, at), block) in now.iter().zip(bytes.chunks_exact_mut(size)) {
                let start = *index as u64 * per_block;
                let (changed, end) = compare_block(walk, width, start, block, repair);
                last = last.max(end);
                if changed {
                    self.host.file.write_at(*at, block)?;
                }
            }
            rest = later;
        }
        let missing: Vec<(u64, u64)> = walk
            .counts
            .used()
            .filter(|(cluster, _)| !walk.blocks.contains_key(&((cluster / per_block) as usize)))
            .collect();
        for (cluster, found) in missing {
            last = last.max(Some(cluster));
            walk.note_refcount(cluster, (0, found), false);
        }
        if walk.too_many_users > 0 && !walk.told {
            let bits = 1u64 << width.order();
            walk.say(|| format!("refcount_bits={bits} cannot count so many users of a cluster: amend it to more"));
        }
        walk.report.image_end_offset = Some(last.map_or(0, |c| (c + 1) << self.geometry.cluster_bits));
        Ok(())
    }

    /// Forgets what is cached about an image that was changed behind the caches.
    pub fn reload(&self, writer: &mut Writer) -> Result<()> {
        let mut shared = self.write_shared();
        shared.l2.clear();
        let storage = self.host.file.as_ref();
        let (at, clusters) = writer.refcounts.table_place();
        shared.header.reftable_offset = at;
        shared.header.reftable_clusters = u32::try_from(clusters).unwrap_or(u32::MAX);
        let reftable = super::open::read_reftable(storage, &shared.header, &self.geometry, u64::MAX)?;
        *self.write_metadata() = super::open::build_map(
            &self.geometry,
            &shared.header,
            &shared.l1,
            &reftable,
            &shared.snapshots,
            &shared.extensions,
            storage.len()?,
        );
        drop(shared);
        *self.unpacked.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        writer.packed_end = 0;
        writer.refcounts.reload(at, reftable);
        Ok(())
    }
}

/// Compares one block; says whether it was changed, and the last cluster with a refcount or a reference.
fn compare_block(
    walk: &mut Walk<'_>,
    width: RefcountWidth,
    start: u64,
    block: &mut [u8],
    repair: Repair,
) -> (bool, Option<u64>) {
    let mut changed = false;
    let mut last = None;
    let count = width.count(block.len() as u64);
    let file_end = walk.file_clusters();
    let mut slot = 0;
    while slot < count {
        let cluster = start.saturating_add(slot);
        // Blocks are mostly empty: whole steps of them are passed over.
        if slot % counts::STEP == 0 && !walk.counts.any_in_step(cluster) && width.is_zero(block, slot, counts::STEP) {
            slot += counts::STEP;
            continue;
        }
        let this = slot;
        slot += 1;
        let (stored, found) = (width.get(block, this as usize), walk.counts.get(cluster));
        // Past the end of the file a refcount takes no space; the cluster is not given out either.
        if found == 0 && (stored == 0 || cluster >= file_end) {
            continue;
        }
        last = Some(cluster);
        if stored == found {
            continue;
        }
        let leak = stored > found;
        walk.too_many_users += u64::from(found > width.max());
        let mend = match repair {
            Repair::No => false,
            Repair::Leaks => leak,
            Repair::All => found <= width.max(),
        };
        if mend {
            width.set(block, this as usize, found);
            changed = true;
        }
        walk.note_refcount(cluster, (stored, found), mend);
    }
    (changed, last)
}
