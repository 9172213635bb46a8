//! Who uses which part of the file.

use std::collections::BTreeMap;

/// Parts of the file that have a user. Sets of units, as bits of 64 each: a sparse file can have more units than memory has bits.
pub(in crate::formats) struct Users {
    /// What every place of a table or a whole cluster is a multiple of.
    unit: u64,
    /// Tables, whole clusters and the backing file's name.
    owned: Units,
    /// Compressed clusters. They share units, and are never written in place.
    packed: Units,
}

impl Users {
    pub(in crate::formats) fn new(unit: u64) -> Self {
        Self {
            unit,
            owned: Units::default(),
            packed: Units::default(),
        }
    }

    /// Takes `bytes` bytes at `at` for one user alone; false where there is another.
    pub(in crate::formats) fn own(&mut self, at: u64, bytes: u64) -> bool {
        let (from, to) = self.units(at, bytes);
        let free = !self.owned.meet(from, to) && !self.packed.meet(from, to);
        self.owned.add(from, to);
        free
    }

    /// Takes them for a compressed cluster; false where something lies that can be written in place.
    pub(super) fn pack(&mut self, at: u64, bytes: u64) -> bool {
        let (from, to) = self.units(at, bytes);
        self.packed.add(from, to);
        !self.owned.meet(from, to)
    }

    /// Units from `at` on that one user has for itself.
    pub(in crate::formats) fn owned_from(&self, at: u64) -> u64 {
        self.owned.count_from(at / self.unit)
    }

    fn units(&self, at: u64, bytes: u64) -> (u64, u64) {
        (at / self.unit, at.saturating_add(bytes).div_ceil(self.unit))
    }
}

#[derive(Default)]
struct Units(BTreeMap<u64, u64>);

impl Units {
    fn meet(&self, from: u64, to: u64) -> bool {
        words(from, to).any(|(word, bits)| self.0.get(&word).is_some_and(|have| have & bits != 0))
    }
    fn add(&mut self, from: u64, to: u64) {
        for (word, bits) in words(from, to) {
            *self.0.entry(word).or_default() |= bits;
        }
    }
    fn count_from(&self, first: u64) -> u64 {
        let counted = self.0.range(first / 64..).map(|(word, bits)| {
            let before = first.saturating_sub(word * 64);
            u64::from((bits >> before).count_ones())
        });
        counted.sum()
    }
}

/// The words that units `from..to` lie in, with the bits of each.
fn words(from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
    (from / 64..to.div_ceil(64)).map(move |word| {
        let first = from.max(word * 64) - word * 64;
        let last = to.min((word + 1) * 64) - word * 64;
        (word, u64::MAX << first & u64::MAX >> (64 - last))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_at_both_ends() {
        assert_eq!(words(0, 1).collect::<Vec<_>>(), [(0, 1)]);
        assert_eq!(words(63, 65).collect::<Vec<_>>(), [(0, 1 << 63), (1, 1)]);
        assert_eq!(words(64, 128).collect::<Vec<_>>(), [(1, u64::MAX)]);
        assert!(words(5, 5).all(|(_, bits)| bits == 0));
    }

    #[test]
    fn packed_clusters_share_what_others_may_not_have() {
        let mut users = Users::new(512);
        assert!(users.own(4096, 4096));
        assert!(!users.own(8192 - 512, 512));
        assert!(users.pack(8192, 100) && users.pack(8292, 600));
        assert!(!users.own(8192 + 512, 4096));
        assert!(!users.pack(4000, 97));
    }

    #[test]
    fn units_are_counted_from_a_place_on() {
        let mut users = Users::new(4096);
        users.own(0, 3 * 4096);
        users.own(63 * 4096, 2 * 4096);
        users.own(200 * 4096, 4096);
        for (from, count) in [(0, 6), (1, 5), (3, 3), (64, 2), (65, 1), (200, 1), (201, 0), (1000, 0)] {
            assert_eq!(users.owned_from(from * 4096), count, "{from}");
        }
    }
}
