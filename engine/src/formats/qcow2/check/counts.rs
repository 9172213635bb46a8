//! How often each host cluster is referred to, as found by walking the tables.

use std::collections::HashMap;

const PAGE: usize = 1024;
/// Clusters that can be passed over together.
pub(super) const STEP: u64 = 64;

/// Counted references. Takes memory for what is referred to, not for what a file claims to be.
#[derive(Default)]
pub(in super::super) struct Counts {
    pages: HashMap<u64, Box<[u16; PAGE]>>,
    /// Counts that do not fit.
    large: HashMap<u64, u64>,
}

impl Counts {
    /// Adds references to a cluster.
    pub fn add(&mut self, cluster: u64, times: u64) {
        let page = self
            .pages
            .entry(cluster / PAGE as u64)
            .or_insert_with(|| Box::new([0; PAGE]));
        let slot = &mut page[(cluster % PAGE as u64) as usize];
        match u16::try_from(u64::from(*slot) + times) {
            Ok(sum) if *slot < u16::MAX && sum < u16::MAX => *slot = sum,
            _ => {
                let before = if *slot == u16::MAX { 0 } else { u64::from(*slot) };
                *self.large.entry(cluster).or_insert(0) += before + times;
                *slot = u16::MAX;
            }
        }
    }
    /// References to a cluster.
    pub fn get(&self, cluster: u64) -> u64 {
        match self
            .pages
            .get(&(cluster / PAGE as u64))
            .map(|p| p[(cluster % PAGE as u64) as usize])
        {
            None => 0,
            Some(u16::MAX) => self.large.get(&cluster).copied().unwrap_or(0),
            Some(n) => u64::from(n),
        }
    }
    /// Whether any of the [`STEP`] clusters from a multiple of it on may be referred to.
    pub fn any_in_step(&self, first: u64) -> bool {
        self.pages.contains_key(&(first / PAGE as u64))
    }
    /// All clusters with references, in rising order.
    pub fn used(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut numbers: Vec<u64> = self.pages.keys().copied().collect();
        numbers.sort_unstable();
        numbers.into_iter().flat_map(move |n| {
            let first = n * PAGE as u64;
            (first..first + PAGE as u64)
                .map(|c| (c, self.get(c)))
                .filter(|(_, count)| *count > 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_past_16_bits_are_kept() {
        let mut counts = Counts::default();
        counts.add(5, 65_534);
        counts.add(5, 1);
        counts.add(5, 70_000);
        counts.add(4000, 2);
        assert_eq!(counts.used().collect::<Vec<_>>(), [(5, 135_535), (4000, 2)]);
    }
}
