//! The same scenarios with one change failing: an error that does nothing, half a write, a flush that loses what it covers.

use std::io::ErrorKind;

use vdisk_engine::ErrorKind as Kind;

use crate::lab::{Failure, Lab};
use crate::states::{Random, Scenario, number};

impl Scenario<'_> {
    /// Fails single changes; gives the number of runs.
    pub fn failures(&self) -> usize {
        let lab = Lab::new(&self.start);
        let mut model = self.model(&lab);
        (self.script)(&lab, &mut model).unwrap();
        let changes = lab.changes();
        let wanted = (number("VDISK_CRASH_STATES", 40) / 4) as usize;
        let mut random = Random::new(number("VDISK_SEED", 1) + 7);
        let failures = [
            Failure::Error(ErrorKind::Other),
            Failure::Error(ErrorKind::StorageFull),
            Failure::Short,
            Failure::Flush { every: 1 },
            Failure::Flush { every: 2 },
        ];
        let possible = changes * failures.len();
        for index in 0..wanted.min(possible) {
            let point = if wanted >= possible {
                index
            } else {
                random.below(possible)
            };
            self.fail(point / failures.len(), failures[point % failures.len()]);
        }
        wanted.min(possible)
    }

    fn fail(&self, at: usize, failure: Failure) {
        let what = format!("{}: {failure:?} at change {at}", self.name);
        let lab = Lab::new(&self.start);
        let mut model = self.model(&lab);
        lab.plan(at, failure);
        if let Err(error) = (self.script)(&lab, &mut model) {
            assert_eq!(error.kind(), Kind::Io, "{what}: {error:?}");
        }
        self.look(lab.contents(), &model, usize::MAX, at.is_multiple_of(10), &what);
    }
}
