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

/// A disk with some content over another one with some.
fn start(format: &'static str, shorter: u64) -> Files {
    let lab = Lab::new(&Vec::new());
    lab.create("base", format, SIZE - shorter, options(format), None);
    let base = lab.chain("base", format, &[0]).unwrap();
    base.write(0, &vec![1; 300 << 10]).unwrap();
    base.top().close().unwrap();
    drop(base);
    lab.create("top", format, SIZE, options(format), Some(("base", format)));
    let top = lab.chain("top", format, &[0]).unwrap();
    top.write(100 << 10, &vec![2; 300 << 10]).unwrap();
    top.write(SIZE - (100 << 10), &vec![3; 100 << 10]).unwrap();
    top.top().close().unwrap();
    lab.contents()
}

fn commit_in(lab: &Lab, format: &str) -> Result<()> {
    let chain = lab.chain("top", format, &[0, 1])?;
    commit(&chain, 1, true, &CopyOptions::default(), &Control::default())
}

fn content(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_commit_that_is_cut_off_leaves_an_overlay_that_opens() {
    for (format, shorter) in FORMATS {
        let scenario = Scenario {
            name: format!("commit, {format}"),
            format,
            start: start(format, shorter),
            most: 2 << 20,
            damaged: false,
            script: &|lab, _| commit_in(lab, format),
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
    for (format, shorter) in FORMATS {
        let start = start(format, shorter);
        let expected = content(&Lab::new(&start).chain("top", format, &[]).unwrap());
        let whole = Lab::new(&start);
        commit_in(&whole, format).unwrap();
        for at in 0..whole.changes() {
            for failure in [Failure::Error(ErrorKind::StorageFull), Failure::Short, Failure::Flush] {
                let what = format!("{format}: {failure:?} at change {at}");
                let lab = Lab::new(&start);
                lab.plan(at, failure);
                if commit_in(&lab, format).is_ok() {
                    continue; // Nothing of that kind was left to fail.
                }
                let lab = Lab::new(&lab.contents());
                let chain = lab.chain("top", format, &[]).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(content(&chain) == expected, "{what}");
                drop(chain);
                commit_in(&lab, format).unwrap_or_else(|e| panic!("{what}: a second time: {e}"));
                for name in ["base", "top"] {
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
        let files = start(format, shorter);
        let lab = Lab::new(&files);
        lab.create("other", format, SIZE, options(format), Some(("base", format)));
        lab.create("empty", format, SIZE - shorter, options(format), Some(("base", format)));
        let chain = lab.chain("empty", format, &[0, 1]).unwrap();
        commit(&chain, 1, true, &CopyOptions::default(), &Control::default()).unwrap();
        drop(chain);
        lab.chain("other", format, &[]).unwrap();
        commit_in(&lab, format).unwrap();
        assert!(
            lab.chain("other", format, &[]).is_err(),
            "{format}: the base was changed under it"
        );
    }
}
