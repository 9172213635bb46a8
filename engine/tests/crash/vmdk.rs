//! A commit into a VMDK, which its overlay knows by what changes with the content.

use std::io::ErrorKind;

use vdisk_engine::ops::{commit::commit, convert::CopyOptions};
use vdisk_engine::options::Options;
use vdisk_engine::{Chain, Control, Result};

use crate::lab::{Failure, Files, Lab};
use crate::states::Scenario;

const SIZE: u64 = 1 << 20;

/// A disk with some content over a shorter one with some.
fn start() -> Files {
    let lab = Lab::new(&Vec::new());
    lab.create("base", "vmdk", SIZE - (192 << 10), Options::new(), None);
    let base = lab.chain("base", "vmdk", &[0]).unwrap();
    base.write(0, &vec![1; 300 << 10]).unwrap();
    base.top().close().unwrap();
    drop(base);
    lab.create("top", "vmdk", SIZE, Options::new(), Some(("base", "vmdk")));
    let top = lab.chain("top", "vmdk", &[0]).unwrap();
    top.write(100 << 10, &vec![2; 300 << 10]).unwrap();
    top.write(SIZE - (100 << 10), &vec![3; 100 << 10]).unwrap();
    top.top().close().unwrap();
    lab.contents()
}

fn commit_in(lab: &Lab) -> Result<()> {
    let chain = lab.chain("top", "vmdk", &[0, 1])?;
    commit(&chain, 1, true, &CopyOptions::default(), &Control::default())
}

fn content(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_commit_that_is_cut_off_leaves_an_overlay_that_opens() {
    let scenario = Scenario {
        name: "commit, vmdk".into(),
        format: "vmdk",
        start: start(),
        most: 2 << 20,
        damaged: false,
        script: &|lab, _| commit_in(lab),
    };
    let states = scenario.power_cuts();
    println!("{states} power-cut states, {} failing changes", scenario.failures());
}

#[test]
fn a_commit_that_failed_can_be_done_again() {
    let start = start();
    let expected = content(&Lab::new(&start).chain("top", "vmdk", &[]).unwrap());
    let whole = Lab::new(&start);
    commit_in(&whole).unwrap();
    for at in 0..whole.changes() {
        for failure in [Failure::Error(ErrorKind::StorageFull), Failure::Short, Failure::Flush] {
            let what = format!("{failure:?} at change {at}");
            let lab = Lab::new(&start);
            lab.plan(at, failure);
            if commit_in(&lab).is_ok() {
                continue; // Nothing of that kind was left to fail.
            }
            let lab = Lab::new(&lab.contents());
            let chain = lab.chain("top", "vmdk", &[]).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(content(&chain) == expected, "{what}");
            drop(chain);
            commit_in(&lab).unwrap_or_else(|e| panic!("{what}: a second time: {e}"));
            for name in ["base", "top"] {
                let chain = lab.chain(name, "vmdk", &[]).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(content(&chain) == expected, "{what}: {name} after the second time");
            }
        }
    }
}

#[test]
fn an_overlay_that_has_nothing_leaves_its_base_to_others() {
    let files = start();
    let lab = Lab::new(&files);
    lab.create("other", "vmdk", SIZE, Options::new(), Some(("base", "vmdk")));
    lab.create(
        "empty",
        "vmdk",
        SIZE - (192 << 10),
        Options::new(),
        Some(("base", "vmdk")),
    );
    let chain = lab.chain("empty", "vmdk", &[0, 1]).unwrap();
    commit(&chain, 1, true, &CopyOptions::default(), &Control::default()).unwrap();
    drop(chain);
    lab.chain("other", "vmdk", &[]).unwrap();
    commit_in(&lab).unwrap();
    assert!(
        lab.chain("other", "vmdk", &[]).is_err(),
        "the base was changed under it"
    );
}
