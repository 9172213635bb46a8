//! From guest ranges to what the tables say about them.

use super::cache::Table;
use super::image::{Qcow2, Shared};
use super::layout::{L1Entry, L2Entry, Subclusters, words_from_be};
use crate::Result;
use crate::image::{Extent, ExtentKind, HostPlace};
use std::sync::Arc;

/// L2 tables that one look-up may read from the file; more only make a run longer.
const MOST_LOADS: usize = 16;
/// Bytes of neighbouring L2 tables that are read at once.
const READ_AHEAD: u64 = 1 << 20;

/// What a run of guest bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Unallocated,
    Zero {
        at: Option<u64>,
    },
    Data {
        at: u64,
    },
    /// One cluster, from its first byte on, whatever part of it was asked for.
    Packed {
        at: u64,
        len: u64,
    },
}

/// A run of guest bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub len: u64,
    pub kind: Kind,
}

impl Run {
    /// Whether `next` continues this run.
    fn goes_on_with(&self, next: Kind) -> bool {
        match (self.kind, next) {
            (Kind::Unallocated, Kind::Unallocated) | (Kind::Zero { at: None }, Kind::Zero { at: None }) => true,
            (Kind::Zero { at: Some(a) }, Kind::Zero { at: Some(b) }) | (Kind::Data { at: a }, Kind::Data { at: b }) => {
                a.checked_add(self.len) == Some(b)
            }
            _ => false,
        }
    }
}

impl Qcow2 {
    /// The L2 table of an L1 entry; `None` where there is none.
    pub fn table(&self, shared: &Shared, index: usize) -> Result<Option<Table>> {
        if let Some(table) = shared.l2.get(index) {
            return Ok(Some(table));
        }
        let raw = shared.l1.get(index).copied().unwrap_or(0);
        match L1Entry::decode(raw, &self.geometry)? {
            L1Entry::Unallocated => Ok(None),
            L1Entry::Table { at, .. } => self.load_tables(shared, index, at).map(Some),
        }
    }

    /// Reads the table at `at`, and with it those of the next L1 entries that stand right behind it.
    fn load_tables(&self, shared: &Shared, index: usize, at: u64) -> Result<Table> {
        let size = self.geometry.cluster_size();
        let most = READ_AHEAD.div_ceil(size).max(1);
        let follows = |n: &u64| {
            let raw = usize::try_from(*n)
                .ok()
                .and_then(|n| shared.l1.get(index.checked_add(n)?));
            let entry = raw.and_then(|raw| L1Entry::decode(*raw, &self.geometry).ok());
            matches!(entry, Some(L1Entry::Table { at: next, .. }) if Some(next) == at.checked_add(n * size))
        };
        let inside = (self.host.file.len()?.saturating_sub(at)) / size;
        let count = 1 + (1..most.min(inside)).take_while(follows).count();
        let metadata = self.read_metadata();
        metadata.refuse_shared("L2 table", at)?;
        let clean = (0..count as u64).take_while(|n| metadata.refuse_shared("", at + n * size).is_ok());
        let count = clean.count();
        drop(metadata);
        let mut bytes = vec![0; count * self.geometry.cluster_len()];
        self.host.file.read_at(at, &mut bytes)?;
        let mut first = None;
        for (n, bytes) in bytes.chunks_exact(self.geometry.cluster_len()).enumerate() {
            if n > 0 && shared.l2.get(index + n).is_some() {
                continue;
            }
            let table: Table = Arc::new(words_from_be(bytes));
            first.get_or_insert_with(|| table.clone());
            shared.l2.insert(index + n, table);
        }
        Ok(first.unwrap_or_default())
    }

    /// What the range from `offset` begins with, at most `len` bytes.
    pub fn locate(&self, shared: &Shared, offset: u64, len: u64) -> Result<Run> {
        let end = offset.saturating_add(len);
        let mut run: Option<Run> = None;
        let mut at = offset;
        let mut loads = 0;
        while at < end {
            let index = self.geometry.l1_index(at);
            let span_end = (index as u64 + 1).saturating_mul(self.geometry.l2_span()).min(end);
            if shared.l1.get(index).is_none_or(|raw| *raw == 0) {
                if !extend(&mut run, span_end - at, Kind::Unallocated) {
                    break;
                }
                at = span_end;
                continue;
            }
            let known = shared.l2.get(index);
            if known.is_none() {
                loads += 1;
                if loads > MOST_LOADS && run.is_some() {
                    break;
                }
            }
            let table = match known.map_or_else(|| self.table(shared, index), |t| Ok(Some(t))) {
                Ok(table) => table.unwrap_or_default(),
                // What comes before is good, and is given first.
                Err(_) if run.is_some() => break,
                Err(error) => return Err(error),
            };
            let reached = self.scan(shared.header.version, &table, at, span_end, &mut run)?;
            if reached < span_end {
                break;
            }
            at = reached;
        }
        Ok(run.unwrap_or(Run {
            len,
            kind: Kind::Unallocated,
        }))
    }

    /// Continues a run through one table; gives the guest offset where it ends.
    fn scan(&self, version: u32, table: &[u64], from: u64, end: u64, run: &mut Option<Run>) -> Result<u64> {
        let geometry = &self.geometry;
        let mut at = from;
        while at < end {
            let entry = match self.decode_entry(table, at, version) {
                Ok(entry) => entry,
                Err(_) if run.is_some() => return Ok(at),
                Err(error) => return Err(error),
            };
            let in_cluster = geometry.in_cluster(at);
            let cluster = at - in_cluster;
            let cluster_end = cluster.saturating_add(geometry.cluster_size()).min(end);
            match entry {
                L2Entry::Compressed { at: place, len } => {
                    let fits = extend(run, cluster_end - at, Kind::Packed { at: place, len });
                    return Ok(if fits { cluster_end } else { at });
                }
                L2Entry::Standard { at: host, subs, .. } if !geometry.extended_l2 => {
                    let alike = L2Entry::alike(table, geometry.l2_index(at), host.is_some(), geometry);
                    let alike_end = cluster.saturating_add(alike << geometry.cluster_bits).min(end);
                    let (kind, _) = self.sub_run(subs, host, in_cluster);
                    if !extend(run, alike_end - at, kind) {
                        return Ok(at);
                    }
                    at = alike_end;
                }
                L2Entry::Standard { at: host, subs, .. } => {
                    while at < cluster_end {
                        let (kind, len) = self.sub_run(subs, host, geometry.in_cluster(at));
                        let len = len.min(cluster_end - at);
                        if !extend(run, len, kind) {
                            return Ok(at);
                        }
                        at += len;
                    }
                }
            }
        }
        Ok(at)
    }

    /// What the subclusters from a place in a cluster on are, and to where.
    fn sub_run(&self, subs: Subclusters, host: Option<u64>, in_cluster: u64) -> (Kind, u64) {
        let size = self.geometry.subcluster_size();
        let first = (in_cluster / size) as u32;
        let state = |n: u32| (subs.data >> n & 1, subs.zero >> n & 1);
        let this = state(first);
        let mut last = first;
        while last + 1 < self.geometry.subclusters() && state(last + 1) == this {
            last += 1;
        }
        let at = host.map(|h| h + in_cluster);
        let kind = match (this, at) {
            ((0, 0), _) => Kind::Unallocated,
            ((_, 1), at) => Kind::Zero { at },
            (_, Some(at)) => Kind::Data { at },
            (_, None) => Kind::Unallocated,
        };
        (kind, u64::from(last + 1) * size - in_cluster)
    }

    /// The extent that a range begins with.
    pub fn find_extent(&self, offset: u64, len: u64) -> Result<Extent> {
        let shared = self.read_shared();
        let run = self.locate(&shared, offset, len)?;
        let file = self.host.data_index();
        // Encrypted bytes have no place: what stands there is not what the guest sees, and QEMU names none either.
        let place = |offset| self.encryption.is_none().then_some(HostPlace { file, offset });
        let (len, kind) = match run.kind {
            Kind::Unallocated => (run.len, ExtentKind::Unallocated),
            Kind::Zero { at } => (run.len, ExtentKind::Zero { at: at.and_then(place) }),
            Kind::Packed { .. } => (self.packed_len(&shared, offset, len, run.len)?, ExtentKind::Compressed),
            Kind::Data { at } if self.encryption.is_some() => {
                self.check_data(at, run.len)?;
                let (at, direct) = (None, false);
                (run.len, ExtentKind::Data { at, direct })
            }
            Kind::Data { at } => {
                let inside = self.check_data(at, run.len)?;
                // The file may end inside its last cluster: that rest is the driver's to fill with zeroes.
                let (len, direct) = if inside > 0 { (inside, true) } else { (run.len, false) };
                let at = place(at);
                (len, ExtentKind::Data { at, direct })
            }
        };
        Ok(Extent { len, kind })
    }

    /// How far compressed clusters go on.
    fn packed_len(&self, shared: &Shared, offset: u64, len: u64, first: u64) -> Result<u64> {
        let mut total = first;
        while total < len {
            match self.locate(shared, offset + total, (len - total).min(self.geometry.cluster_size())) {
                Ok(Run {
                    len,
                    kind: Kind::Packed { .. },
                }) => total += len,
                _ => break,
            }
        }
        Ok(total)
    }
}

/// Adds a part to a run; false when it does not belong to it.
fn extend(run: &mut Option<Run>, len: u64, kind: Kind) -> bool {
    match run {
        None => {
            *run = Some(Run { len, kind });
            true
        }
        Some(run) if run.goes_on_with(kind) => {
            run.len += len;
            true
        }
        Some(_) => false,
    }
}
