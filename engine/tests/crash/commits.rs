//! A commit into a VMDK or VHDX, which its overlay knows by what changes with the content.

use std::io::ErrorKind;

use vdisk_engine::ops::{commit::commit, convert::CopyOptions};
use vdisk_engine::options::Options;
use vdisk_engine::{Chain, Control, Result};

use crate::lab::{Failure, Files, Lab};
use crate::states::Scenario;

const SIZE: u64 = 1 << 20;

/// The formats, with how much shorter a base may be than its overlay.
const FORMATS: [(&str, u64); 2] = [("vmdk", 192 << 10), ("vhdx", 0)];

fn options(format: &str) -> Options {
    match format {
        "vhdx" => Options::new().with("block_size", "1M"),
        _ => Options::new(),
    }
}

/// How far below the top the base is.
const DEPTHS: [usize; 2] = [1, 2];

/// A disk with some content over another one with some, or over an empty one over that.
fn start(format: &'static str, shorter: u64, depth: usize) -> Files {
    let lab = Lab::new(&Vec::new());
    lab.create("base", format, SIZE - shorter, options(format), None);
    let base = lab.chain("base", format, &[0]).unwrap();
    base.write(0, &vec![1; 300 << 10]).unwrap();
    base.top().close().unwrap();
    drop(base);
    let mut below = "base";
    if depth == 2 {
        lab.create("middle", format, SIZE, options(format), Some((below, format)));
        below = "middle";
    }
    lab.create("top", format, SIZE, options(format), Some((below, format)));
    let top = lab.chain("top", format, &[0]).unwrap();
    top.write(100 << 10, &vec![2; 300 << 10]).unwrap();
    top.write(SIZE - (100 << 10), &vec![3; 100 << 10]).unwrap();
    top.top().close().unwrap();
    lab.contents()
}

fn commit_in(lab: &Lab, format: &str, depth: usize) -> Result<()> {
    let chain = lab.chain("top", format, &[0, depth - 1, depth])?;
    commit(&chain, depth, true, &CopyOptions::default(), &Control::default())
}

/// Each format, and each depth of the base.
fn cases() -> impl Iterator<Item = (&'static str, u64, usize)> {
    let deep = |(format, shorter)| DEPTHS.map(|depth| (format, shorter, depth));
    FORMATS.into_iter().flat_map(deep)
}

fn content(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_commit_that_is_cut_off_leaves_an_overlay_that_opens() {
    for (format, shorter, depth) in cases() {
        let scenario = Scenario {
            name: format!("commit into depth {depth}, {format}"),
            format,
            start: start(format, shorter, depth),
            most: 2 << 20,
            damaged: false,
            script: &|lab, _| commit_in(lab, format, depth),
        };
        let states = scenario.power_cuts();
        println!(
            "{format}: {states} power-cut states, {} failing changes",
            scenario.failures()
        );
    }
}

#[test]
fn a_commit_that_failed_can_be_done_again() {
    for (format, shorter, depth) in cases() {
        let start = start(format, shorter, depth);
        let expected = content(&Lab::new(&start).chain("top", format, &[]).unwrap());
        let whole = Lab::new(&start);
        commit_in(&whole, format, depth).unwrap();
        for at in 0..whole.changes() {
            for failure in [
                Failure::Error(ErrorKind::StorageFull),
                Failure::Short,
                Failure::Flush { every: 1 },
                Failure::Flush { every: 2 },
            ] {
                let what = format!("{format}, depth {depth}: {failure:?} at change {at}");
                let lab = Lab::new(&start);
                lab.plan(at, failure);
                if commit_in(&lab, format, depth).is_ok() {
                    continue; // Nothing of that kind was left to fail.
                }
                let lab = Lab::new(&lab.contents());
                let chain = lab.chain("top", format, &[]).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(content(&chain) == expected, "{what}");
                drop(chain);
                commit_in(&lab, format, depth).unwrap_or_else(|e| panic!("{what}: a second time: {e}"));
                let middle = (depth == 2).then_some("middle");
                for name in ["base", "top"].into_iter().chain(middle) {
                    let chain = lab.chain(name, format, &[]).unwrap_or_else(|e| panic!("{what}: {e}"));
                    assert!(content(&chain) == expected, "{what}: {name} after the second time");
                }
            }
        }
    }
}

#[test]
fn an_overlay_that_has_nothing_leaves_its_base_to_others() {
    for (format, shorter) in FORMATS {
        let files = start(format, shorter, 1);
        let lab = Lab::new(&files);
        lab.create("other", format, SIZE, options(format), Some(("base", format)));
        lab.create("empty", format, SIZE - shorter, options(format), Some(("base", format)));
        let chain = lab.chain("empty", format, &[0, 1]).unwrap();
        commit(&chain, 1, true, &CopyOptions::default(), &Control::default()).unwrap();
        drop(chain);
        lab.chain("other", format, &[]).unwrap();
        commit_in(&lab, format, 1).unwrap();
        assert!(
            lab.chain("other", format, &[]).is_err(),
            "{format}: the base was changed under it"
        );
    }
}
