//! Clusters that are used once less, grouped: the tables of a few bytes may name one cluster millions of times.

use std::ops::Range;

/// What is given back once the file no longer refers to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Release {
    /// Host clusters, by number.
    pub clusters: Range<u64>,
    /// How many users less each of them has.
    pub times: u64,
    /// Whether the host gets the space as well.
    pub discard: bool,
}

impl Release {
    /// One user less of some clusters, whose space the host gets with the last one.
    pub fn once(clusters: Range<u64>) -> Self {
        Self {
            clusters,
            times: 1,
            discard: true,
        }
    }
}

/// Releases in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Releases(Vec<Release>);

/// More of them are to be given back before others are added: 8 MiB.
const MANY: usize = 1 << 18;

impl Releases {
    /// Adds one user less of some clusters.
    pub fn add(&mut self, clusters: Range<u64>, discard: bool) {
        match self.0.last_mut().filter(|last| last.discard == discard) {
            Some(last) if last.clusters == clusters => last.times += 1,
            Some(last) if last.times == 1 && last.clusters.end == clusters.start => last.clusters.end = clusters.end,
            _ if clusters.is_empty() => {}
            _ => self.0.push(Release {
                discard,
                ..Release::once(clusters)
            }),
        }
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Whether there are so many that they should be given back soon.
    pub fn are_many(&self) -> bool {
        self.0.len() >= MANY
    }
    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.0.clear();
    }
    /// Takes all of them.
    pub fn take(&mut self) -> Vec<Release> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_and_repetitions_take_no_room() {
        let mut releases = Releases::default();
        for clusters in [5..6, 6..8, 1..2, 1..2, 1..2, 2..3, 9..9] {
            releases.add(clusters, false);
        }
        releases.add(3..4, true);
        let of = |clusters, times, discard| Release {
            clusters,
            times,
            discard,
        };
        let expected = [
            of(5..8, 1, false),
            of(1..2, 3, false),
            of(2..3, 1, false),
            of(3..4, 1, true),
        ];
        assert_eq!(releases.take(), expected);
        assert!(releases.is_empty());
    }
}
