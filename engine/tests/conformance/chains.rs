//! Rebase and commit of every driver's overlays: what the guest sees stays as it was, whatever the layers hold and however long they are.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use vdisk_engine::formats::FormatDriver;
use vdisk_engine::image::BackingReference;
use vdisk_engine::ops::commit::commit;
use vdisk_engine::ops::convert::CopyOptions;
use vdisk_engine::ops::rebase::rebase;
use vdisk_engine::options::Options;
use vdisk_engine::{CancelToken, Chain, Control, Limits, OpenEnv, Progress};

use crate::layers::{
    FULL, Layer, base_format, done, layers, make, make_with, model, overlays, seen, size_of, variants,
};
use crate::support::{Files, assert_clean, contents, node};

/// From where to where an overlay is rebased.
#[derive(Clone, Copy)]
struct Way {
    from_base: bool,
    onto_base: bool,
}

const WAYS: [Way; 3] = [
    Way {
        from_base: true,
        onto_base: true,
    },
    Way {
        from_base: true,
        onto_base: false,
    },
    Way {
        from_base: false,
        onto_base: true,
    },
];

/// Gives whether the overlay came onto the other base, or onto none.
fn rebase_onto(driver: &'static dyn FormatDriver, options: &Options, layers: &[Layer], way: Way) -> bool {
    let (files, base) = (Files::default(), base_format(driver));
    let [old, new, top] = layers else { return false };
    let below = way.from_base.then_some(("old", base));
    if !make(&files, "old", base, old, None)
        || !make(&files, "new", base, new, None)
        || !make_with(&files, "top", driver.name(), options, top, below)
    {
        return false;
    }
    let shown = match way.from_base {
        true => model(size_of(&files, "old", base), &[], old),
        false => Vec::new(),
    };
    let expected = model(size_of(&files, "top", driver.name()), &shown, top);
    let other = way.onto_base.then(|| files.open("new", base, false).unwrap());
    let chain = files.open("top", driver.name(), true).unwrap();
    let backing = way.onto_base.then(|| BackingReference {
        name: "new".into(),
        format: Some(base.into()),
    });
    let result = rebase(
        &chain,
        other.as_ref(),
        backing.as_ref(),
        &CopyOptions::default(),
        &Control::default(),
    );
    drop((chain, other));
    let done = done(driver, "rebase", result);
    assert!(
        seen(&files, "top", driver) == expected,
        "{} {options:?}: rebase",
        driver.name()
    );
    assert_clean(&files, "top", driver);
    done
}

/// Gives whether the layers above came into the layer at depth `into`.
fn commit_into(driver: &'static dyn FormatDriver, layers: &[Layer], into: usize) -> bool {
    let (files, base) = (Files::default(), base_format(driver));
    let [bottom, middle, top] = layers else { return false };
    if !make(&files, "bottom", base, bottom, None)
        || !make(&files, "middle", driver.name(), middle, Some(("bottom", base)))
        || !make(&files, "top", driver.name(), top, Some(("middle", driver.name())))
    {
        return false;
    }
    let expected = seen(&files, "top", driver);
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).with_gate(&files).writable();
    let depths: Vec<_> = (0..=into).collect();
    let chain = Chain::open_writable(node(files.get("top"), driver.name()), &env, &depths).unwrap();
    let result = commit(&chain, into, false, &CopyOptions::default(), &Control::default());
    drop(chain);
    let done = done(driver, "commit", result);
    if done {
        let (name, format) = [("middle", driver.name()), ("bottom", base)][into - 1];
        let mut bytes = contents(&files.open(name, format, false).unwrap());
        bytes.truncate(expected.len());
        assert!(bytes == expected, "{}: commit into {name}", driver.name());
    }
    if into == 1 || !done {
        assert!(
            seen(&files, "top", driver) == expected,
            "{}: after commit",
            driver.name()
        );
    }
    if into == 1 {
        assert_clean(&files, "middle", driver);
    }
    done
}

/// Commits the layer in the middle into the one at the bottom, and empties it.
fn commit_middle(driver: &'static dyn FormatDriver, options: &Options, layers: &[Layer]) {
    let (files, base) = (Files::default(), base_format(driver));
    let [bottom, middle, top] = layers else { return };
    if !make(&files, "bottom", base, bottom, None)
        || !make_with(&files, "middle", driver.name(), options, middle, Some(("bottom", base)))
        || !make(&files, "top", driver.name(), top, Some(("middle", driver.name())))
    {
        return;
    }
    let shown = model(size_of(&files, "bottom", base), &[], bottom);
    let shown = model(size_of(&files, "middle", driver.name()), &shown, middle);
    let expected = model(size_of(&files, "top", driver.name()), &shown, top);
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).with_gate(&files).writable();
    let chain = Chain::open_writable(node(files.get("middle"), driver.name()), &env, &[0, 1]).unwrap();
    let result = commit(&chain, 1, true, &CopyOptions::default(), &Control::default());
    drop(chain);
    done(driver, "commit", result);
    for (name, expected) in [("middle", shown), ("top", expected)] {
        assert!(
            seen(&files, name, driver) == expected,
            "{} {options:?}: {name} after the commit below the top",
            driver.name()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5))]

    #[test]
    fn a_rebase_changes_nothing_that_is_seen(layers in layers(), variant in 0..7usize) {
        for driver in overlays().into_iter().filter(|d| d.capabilities().change_backing) {
            let options = variants(driver);
            for way in WAYS {
                rebase_onto(driver, &options[variant % options.len()], &layers, way);
            }
        }
    }

    #[test]
    fn a_commit_makes_the_base_show_what_the_top_showed(layers in layers()) {
        for driver in overlays() {
            commit_into(driver, &layers, 1);
            commit_into(driver, &layers, 2);
        }
    }

    #[test]
    fn a_layer_above_one_that_is_committed_shows_what_it_showed(layers in layers(), variant in 0..7usize) {
        for driver in overlays() {
            let options = variants(driver);
            commit_middle(driver, &options[variant % options.len()], &layers);
        }
    }
}

/// Also where nothing is committed, and where the base has to grow over a longer one.
#[test]
fn an_overlay_of_an_emptied_layer_opens() {
    let layer = |size, writes: &[(u64, u64, u8)]| Layer {
        size,
        writes: writes.to_vec(),
    };
    let top = layer(FULL, &[(1 << 20, 512, 3)]);
    for (bottom, middle) in [
        (layer(FULL, &[(0, FULL, 1)]), layer(FULL, &[])),
        (layer(FULL, &[(0, FULL, 1)]), layer(FULL, &[(0, 70_144, 2)])),
        (layer(FULL, &[(0, FULL, 1)]), layer(1 << 20, &[(0, 70_144, 2)])),
        (layer(1 << 20, &[(0, FULL, 1)]), layer(FULL, &[(0, 70_144, 2)])),
    ] {
        for driver in overlays() {
            for options in variants(driver) {
                commit_middle(driver, &options, &[bottom.clone(), middle.clone(), top.clone()]);
            }
        }
    }
}

/// Zeroes that the old base shows are written where the new one has something else, in whole units and in parts of them.
#[test]
fn zeroes_of_the_old_base_are_not_left_to_the_new_one() {
    let empty = Layer {
        size: FULL,
        writes: Vec::new(),
    };
    for size in [512, 65_536 + 512, FULL] {
        let new = Layer {
            size,
            writes: vec![(0, 70_144, 7), (1 << 20, 1 << 20, 8)],
        };
        let layers = [empty.clone(), new, empty.clone()];
        for driver in overlays().into_iter().filter(|d| d.capabilities().change_backing) {
            // Some take a base of their own size only.
            assert!(
                rebase_onto(driver, &Options::new(), &layers, WAYS[0]) || size != FULL,
                "{} {size}",
                driver.name()
            );
        }
    }
}

/// What an image without a base does not hold reads as zeroes, and has to on its first base, whether it was zeroed or never written.
#[test]
fn zeroes_over_no_base_are_not_left_to_the_first_one() {
    let top = Layer {
        size: FULL,
        writes: vec![
            (65_536, 65_536, 1),
            (66_048, 512, 0),
            (196_608, 131_072, 2),
            (196_608, 65_536, 0),
            (1 << 20, 1 << 20, 0),
        ],
    };
    let mut came = BTreeSet::new();
    for (size, writes) in [
        (FULL, vec![(0, FULL, 9)]),
        (FULL + (1 << 20), vec![(512, 70_144, 9), (196_608, 2 << 20, 8)]),
        (200_192, vec![(0, FULL, 9)]),
    ] {
        let new = Layer { size, writes };
        let layers = [new.clone(), new, top.clone()];
        for driver in overlays().into_iter().filter(|d| d.capabilities().change_backing) {
            for options in variants(driver) {
                if rebase_onto(driver, &options, &layers, WAYS[2]) {
                    came.insert((driver.name(), size));
                }
            }
        }
    }
    // Of the others only disks that were made as overlays can have one.
    for name in ["cow", "qcow2", "qed", "vmdk"] {
        assert!(came.contains(&(name, FULL)), "{name} was not rebased");
    }
}

/// Ends the work once it has written something.
struct StopsOnTheWay(CancelToken);

impl Progress for StopsOnTheWay {
    fn set_total(&self, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {
        self.0.cancel();
    }
    fn pace(&self, _bytes: u64) {}
}

#[test]
fn a_commit_that_is_cancelled_leaves_what_the_top_shows() {
    let mut met = Vec::new();
    for driver in overlays() {
        let (files, base) = (Files::default(), base_format(driver));
        let layer = |fill| Layer {
            size: FULL,
            writes: vec![(0, FULL, fill)],
        };
        if !make(&files, "base", base, &layer(1), None)
            || !make(&files, "top", driver.name(), &layer(2), Some(("base", base)))
        {
            continue;
        }
        let expected = seen(&files, "top", driver);
        let limits = Limits::default();
        let env = OpenEnv::closed(&limits).with_gate(&files).writable();
        let chain = Chain::open_writable(node(files.get("top"), driver.name()), &env, &[0, 1]).unwrap();
        let stop = CancelToken::new();
        let control = Control::new(Arc::new(StopsOnTheWay(stop.clone())), stop);
        let options = CopyOptions {
            workers: 1,
            ..CopyOptions::default()
        };
        let cancelled = commit(&chain, 1, true, &options, &control);
        drop(chain);
        if cancelled.is_ok() {
            continue;
        }
        met.push(driver.name());
        assert!(seen(&files, "top", driver) == expected, "{}", driver.name());
        assert_clean(&files, "top", driver);
    }
    assert!(met.contains(&"vhdx"), "only {met:?} were stopped on the way");
}
