//! A set of host clusters, as sparse bits: bounded by how many are in it, not by how far apart they are.

use std::collections::HashMap;
use std::ops::Range;

const BITS: u64 = 64;

/// Cluster numbers.
#[derive(Debug, Default, Clone)]
pub(super) struct ClusterSet {
    /// Words of bits by their number: short, since a hostile table may name millions of clusters that stand alone.
    words: HashMap<u64, u64>,
}

impl ClusterSet {
    /// Adds one; false when it was there already.
    pub fn insert(&mut self, cluster: u64) -> bool {
        let (word, bit) = split(cluster);
        let bits = self.words.entry(word).or_default();
        let new = *bits & bit == 0;
        *bits |= bit;
        new
    }
    /// Takes one out.
    pub fn remove(&mut self, cluster: u64) {
        let (word, bit) = split(cluster);
        if let Some(bits) = self.words.get_mut(&word) {
            *bits &= !bit;
        }
    }
    /// Takes a range out.
    pub fn remove_range(&mut self, range: Range<u64>) {
        range.for_each(|c| self.remove(c));
    }
    /// Whether it is in.
    pub fn contains(&self, cluster: u64) -> bool {
        let (word, bit) = split(cluster);
        self.words.get(&word).is_some_and(|bits| bits & bit != 0)
    }
    /// The first of a range that is in. Costs a lookup per 64 clusters without any.
    pub fn first_in(&self, range: Range<u64>) -> Option<u64> {
        let mut at = range.start;
        while at < range.end {
            let inside = at % BITS;
            let rest = self.words.get(&(at / BITS)).map_or(0, |bits| bits >> inside);
            if rest != 0 {
                let hit = at + u64::from(rest.trailing_zeros());
                return (hit < range.end).then_some(hit);
            }
            at = at.saturating_add(BITS - inside);
        }
        None
    }
}

fn split(cluster: u64) -> (u64, u64) {
    (cluster / BITS, 1 << (cluster % BITS))
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
