//! Refcounts of 1 to 64 bits in a block of one cluster.

/// How refcounts stand in a block. Widths below 8 bits fill a byte from its lowest bits; wider ones are big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct RefcountWidth {
    order: u32,
}

impl RefcountWidth {
    /// `order` is log2 of the bits: 0 to 6.
    pub fn new(order: u32) -> Self {
        Self { order: order.min(6) }
    }
    /// log2 of the bits.
    pub fn order(self) -> u32 {
        self.order
    }
    /// The largest refcount.
    pub fn max(self) -> u64 {
        u64::MAX >> (64 - (1u64 << self.order))
    }
    /// Refcounts in `bytes`.
    pub fn count(self, bytes: u64) -> u64 {
        (bytes << 3) >> self.order
    }
    /// The refcount at `index`; 0 past the end.
    pub fn get(self, block: &[u8], index: usize) -> u64 {
        if self.order < 3 {
            let (byte, shift) = self.split(index);
            return block.get(byte).map_or(0, |b| u64::from(*b) >> shift & self.max());
        }
        let width = 1usize << (self.order - 3);
        let start = index.saturating_mul(width);
        let part = block.get(start..start.saturating_add(width)).unwrap_or_default();
        part.iter().fold(0, |value, b| value << 8 | u64::from(*b))
    }
    /// Sets the refcount at `index`, which must fit.
    pub fn set(self, block: &mut [u8], index: usize, value: u64) {
        if self.order < 3 {
            let (byte, shift) = self.split(index);
            let mask = (self.max() as u8) << shift;
            if let Some(b) = block.get_mut(byte) {
                *b = *b & !mask | (value as u8) << shift & mask;
            }
            return;
        }
        let width = 1usize << (self.order - 3);
        let start = index.saturating_mul(width);
        if let Some(part) = block.get_mut(start..start.saturating_add(width)) {
            part.copy_from_slice(&value.to_be_bytes()[8 - width..]);
        }
    }
    /// Whether `count` refcounts from `first` on are 0; both multiples of 8.
    pub fn is_zero(self, block: &[u8], first: u64, count: u64) -> bool {
        let at = |slot: u64| ((slot << self.order) >> 3) as usize;
        let end = at(first.saturating_add(count)).min(block.len());
        block.get(at(first)..end).unwrap_or_default().iter().all(|b| *b == 0)
    }
    /// The last refcount that is not 0.
    pub fn last_used(self, block: &[u8]) -> Option<u64> {
        let byte = block.iter().rposition(|b| *b != 0)? as u64;
        let last = self.count(byte + 1).max(1) - 1;
        let first = (byte << 3) >> self.order;
        (first..=last).rev().find(|slot| self.get(block, *slot as usize) != 0)
    }
    /// The bytes of a block that hold the refcount at `index`.
    pub fn bytes_of(self, index: usize) -> std::ops::Range<usize> {
        if self.order < 3 {
            let (byte, _) = self.split(index);
            return byte..byte.saturating_add(1);
        }
        let width = 1usize << (self.order - 3);
        let start = index.saturating_mul(width);
        start..start.saturating_add(width)
    }

    fn split(self, index: usize) -> (usize, u32) {
        let per_byte = 8 >> self.order;
        (index / per_byte, ((index % per_byte) as u32) << self.order)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_width_keeps_each_refcount_apart(order in 0u32..=6, values in proptest::collection::vec(any::<u64>(), 64)) {
            let width = RefcountWidth::new(order);
            let mut block = [0u8; 512];
            for (i, v) in values.iter().enumerate() {
                width.set(&mut block, i, v & width.max());
            }
            for (i, v) in values.iter().enumerate() {
                prop_assert_eq!(width.get(&block, i), v & width.max());
            }
        }
    }

    #[test]
    fn narrow_refcounts_fill_a_byte_from_its_lowest_bits() {
        let mut block = [0u8; 2];
        RefcountWidth::new(1).set(&mut block, 1, 3);
        assert_eq!(block, [0b1100, 0]);
        RefcountWidth::new(4).set(&mut block, 0, 0x0102);
        assert_eq!(block, [1, 2]);
    }
}
