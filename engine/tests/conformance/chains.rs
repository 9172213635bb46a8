//! Rebase and commit of every driver's overlays: what the guest sees stays as it was, whatever the layers hold and however long they are.

use std::sync::Arc;

use proptest::prelude::*;
use vdisk_engine::formats::FormatDriver;
use vdisk_engine::image::BackingReference;
use vdisk_engine::ops::commit::commit;
use vdisk_engine::ops::convert::CopyOptions;
use vdisk_engine::ops::rebase::rebase;
use vdisk_engine::{CancelToken, Chain, Control, ErrorKind, Limits, OpenEnv, Progress, Result};

use crate::support::{Files, assert_clean, contents, drivers, node};

const FULL: u64 = 3 << 20;

/// One layer: its size and what is written into it, zeroes among it.
#[derive(Debug, Clone)]
struct Layer {
    size: u64,
    writes: Vec<(u64, u64, u8)>,
}

fn layer() -> impl Strategy<Value = Layer> {
    let size =
        prop_oneof![3 => Just(FULL), 1 => prop::sample::select(vec![512, 65_536, (1 << 20) + 512, FULL + (1 << 20)])];
    let offset = prop_oneof![0..FULL / 512, (0..FULL / 65_536).prop_map(|c| c * 128)].prop_map(|s| s * 512);
    let len = prop_oneof![4 => 1u64..300, 1 => 1u64..3000].prop_map(|s| s * 512);
    let fill = prop_oneof![1 => Just(0), 3 => 1u8..];
    (size, prop::collection::vec((offset, len, fill), 0..8)).prop_map(|(size, writes)| Layer { size, writes })
}

/// Makes a layer and fills it. Formats that want layers of one size get them so.
fn make(files: &Files, name: &str, format: &str, layer: &Layer, backing: Option<(&str, &str)>) -> bool {
    let below = backing.map(|(name, format)| files.open(name, format, false).unwrap().virtual_size());
    let made = [layer.size, below.unwrap_or(FULL)]
        .iter()
        .any(|size| files.create(name, format, *size, backing).is_ok());
    if !made {
        return false;
    }
    let chain = files.open(name, format, true).unwrap();
    let size = chain.virtual_size();
    for (offset, len, fill) in &layer.writes {
        let len = (*len).min(size.saturating_sub(*offset));
        if len == 0 {
            continue;
        }
        match fill {
            0 => chain.write_zeroes(*offset, len, false).unwrap(),
            fill => chain.write(*offset, &vec![*fill; len as usize]).unwrap(),
        }
    }
    chain.top().close().unwrap();
    true
}

/// The format of bases: raw where a driver's overlays take that.
fn base_format(driver: &dyn FormatDriver) -> &'static str {
    let files = Files::default();
    files.create("base", "raw", FULL, None).unwrap();
    match files.create("top", driver.name(), FULL, Some(("base", "raw"))) {
        Ok(()) => "raw",
        Err(_) => driver.name(),
    }
}

fn overlays() -> Vec<&'static dyn FormatDriver> {
    drivers(|d| {
        let can = d.capabilities();
        can.create && can.write && can.backing && can.zero
    })
}

fn seen(files: &Files, name: &str, driver: &dyn FormatDriver) -> Vec<u8> {
    contents(&files.open(name, driver.name(), false).unwrap())
}

/// Whether it was done; what a format cannot do may be refused, and nothing else.
fn done(driver: &dyn FormatDriver, what: &str, result: Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::Unsupported => false,
        Err(error) => panic!("{} {what}: {error}", driver.name()),
    }
}

/// Gives whether the overlay came onto the other base.
fn rebase_onto(driver: &'static dyn FormatDriver, layers: &[Layer], onto: bool) -> bool {
    let (files, base) = (Files::default(), base_format(driver));
    let [old, new, top] = layers else { return false };
    if !make(&files, "old", base, old, None)
        || !make(&files, "new", base, new, None)
        || !make(&files, "top", driver.name(), top, Some(("old", base)))
    {
        return false;
    }
    let expected = seen(&files, "top", driver);
    let chain = files.open("top", driver.name(), true).unwrap();
    let other = onto.then(|| files.open("new", base, false).unwrap());
    let backing = onto.then(|| BackingReference {
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
    assert!(seen(&files, "top", driver) == expected, "{}: rebase", driver.name());
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

fn layers() -> impl Strategy<Value = [Layer; 3]> {
    [layer(), layer(), layer()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5))]

    #[test]
    fn a_rebase_changes_nothing_that_is_seen(layers in layers()) {
        for driver in overlays().into_iter().filter(|d| d.capabilities().change_backing) {
            rebase_onto(driver, &layers, true);
            rebase_onto(driver, &layers, false);
        }
    }

    #[test]
    fn a_commit_makes_the_base_show_what_the_top_showed(layers in layers()) {
        for driver in overlays() {
            commit_into(driver, &layers, 1);
            commit_into(driver, &layers, 2);
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
                rebase_onto(driver, &layers, true) || size != FULL,
                "{} {size}",
                driver.name()
            );
        }
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
