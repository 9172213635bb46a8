//! A set of host clusters, as sparse bits: bounded by how many are in it, not by how far apart they are.

use std::collections::HashMap;
use std::ops::Range;

const WORDS: usize = 4;
const BITS: u64 = WORDS as u64 * 64;

/// Cluster numbers.
#[derive(Debug, Default, Clone)]
pub(super) struct ClusterSet {
    chunks: HashMap<u64, [u64; WORDS]>,
}

impl ClusterSet {
    /// Adds one; false when it was there already.
    pub fn insert(&mut self, cluster: u64) -> bool {
        let (chunk, word, bit) = split(cluster);
        let slot = &mut self.chunks.entry(chunk).or_insert([0; WORDS])[word];
        let new = *slot & bit == 0;
        *slot |= bit;
        new
    }
    /// Takes one out.
    pub fn remove(&mut self, cluster: u64) {
        let (chunk, word, bit) = split(cluster);
        if let Some(words) = self.chunks.get_mut(&chunk) {
            words[word] &= !bit;
        }
    }
    /// Takes a range out.
    pub fn remove_range(&mut self, range: Range<u64>) {
        range.for_each(|c| self.remove(c));
    }
    /// Whether it is in.
    pub fn contains(&self, cluster: u64) -> bool {
        let (chunk, word, bit) = split(cluster);
        self.chunks.get(&chunk).is_some_and(|words| words[word] & bit != 0)
    }
    /// The first of a range that is in. Costs a lookup per 256 clusters without any.
    pub fn first_in(&self, range: Range<u64>) -> Option<u64> {
        let mut at = range.start;
        while at < range.end {
            let chunk_end = (at / BITS + 1).saturating_mul(BITS).min(range.end);
            if let Some(words) = self.chunks.get(&(at / BITS)) {
                let hit = (at..chunk_end).find(|c| {
                    let (_, word, bit) = split(*c);
                    words[word] & bit != 0
                });
                if hit.is_some() {
                    return hit;
                }
            }
            at = chunk_end;
        }
        None
    }
}

fn split(cluster: u64) -> (u64, usize, u64) {
    let inside = (cluster % BITS) as usize;
    (cluster / BITS, inside / 64, 1 << (inside % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_across_chunks_are_found_and_removed() {
        let mut set = ClusterSet::default();
        assert!((1000..1100).all(|c| set.insert(c)));
        assert!(!set.insert(1099) && set.insert(1100));
        assert_eq!(set.first_in(0..u64::MAX / 2), Some(1000));
        set.remove_range(1000..1050);
        assert_eq!(set.first_in(0..5000), Some(1050));
        assert_eq!(set.first_in(1101..5000), None);
    }
}
