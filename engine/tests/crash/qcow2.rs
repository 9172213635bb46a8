//! Every verb that changes a qcow2 image.

use vdisk_engine::image::{BackingReference, Preallocation, Repair, Resize};
use vdisk_engine::ops::{self, convert::CopyOptions};
use vdisk_engine::options::Options;
use vdisk_engine::{Chain, Control, Result};

use crate::lab::{Files, Lab};
use crate::model::Model;
use crate::states::{Scenario, check};

const SIZE: u64 = 400 << 10;
const SHAPES: [&str; 7] = [
    "cluster_size=512,refcount_bits=64",
    "cluster_size=4096",
    "cluster_size=4096,compat=0.10",
    "cluster_size=16384,extended_l2=on",
    "cluster_size=65536,refcount_bits=1",
    "cluster_size=1024,lazy_refcounts=on",
    "cluster_size=4096,data_file=data,data_file_raw=on",
];

/// Its keys cost time at every open: for writes alone.
const ENCRYPTED: &str =
    "cluster_size=4096,encrypt.format=luks,encrypt.key-secret=key,encrypt.cipher-alg=aes-128,encrypt.iter-time=10";

type Script<'s> = &'s dyn Fn(&Lab, &mut Model<'_>) -> Result<()>;

fn options(text: &str) -> Options {
    text.split(',').fold(Options::new(), |options, pair| {
        let (name, value) = pair.split_once('=').unwrap();
        options.with(name, value)
    })
}

/// A disk with some content over a base with some.
fn start(shape: &str, backed: bool) -> Files {
    let lab = Lab::new(&Vec::new());
    for (name, value) in [("base", 100), ("other", 101)] {
        lab.create(name, "qcow2", SIZE, options("cluster_size=4096"), None);
        let chain = lab.chain(name, "qcow2", &[0]).unwrap();
        chain.write(40 << 10, &vec![value; 200 << 10]).unwrap();
        chain.top().close().unwrap();
    }
    lab.create(
        "top",
        "qcow2",
        SIZE,
        options(shape),
        backed.then_some(("base", "qcow2")),
    );
    let chain = lab.chain("top", "qcow2", &[0]).unwrap();
    chain.write(0, &vec![1; 20 << 10]).unwrap();
    chain.write(100 << 10, &vec![2; 30 << 10]).unwrap();
    chain.write_zeroes(150 << 10, 10 << 10, true).unwrap();
    chain.top().close().unwrap();
    lab.contents()
}

/// Runs a script on images of all shapes that `fits` accepts, by power cuts and by failures.
fn run(name: &str, backed: bool, fits: impl Fn(&str) -> bool, script: Script<'_>) {
    let shapes = SHAPES.iter().filter(|s| fits(s) && !(backed && s.contains("raw")));
    run_shapes(name, backed, shapes, script);
}

fn run_shapes<'a>(name: &str, backed: bool, shapes: impl IntoIterator<Item = &'a &'a str>, script: Script<'_>) {
    let (mut states, mut failures) = (0, 0);
    for shape in shapes {
        let scenario = Scenario {
            name: format!("{name}, {shape}"),
            format: "qcow2",
            start: start(shape, backed),
            most: 2 << 20,
            damaged: false,
            script,
        };
        states += scenario.power_cuts();
        failures += scenario.failures();
    }
    println!("{name}: {states} power-cut states, {failures} failing changes");
}

/// Does something with the top open for writing, and closes it, whatever comes.
fn with_top(lab: &Lab, model: &mut Model<'_>, work: impl Fn(&Chain, &mut Model<'_>) -> Result<()>) -> Result<()> {
    let chain = lab.chain("top", "qcow2", &[0])?;
    let done = work(&chain, model);
    let closed = chain.top().close();
    match (&done, &closed) {
        (Ok(()), Ok(())) => model.flushed(),
        (Err(_), Ok(())) => model.closed_after_failure(),
        _ => {}
    }
    done.and(closed)
}

fn any(_: &str) -> bool {
    true
}

fn counts_and_marks(shape: &str) -> bool {
    // Version 2 has no mark for "count anew", one bit no room for snapshots, data files no counts.
    !["0.10", "refcount_bits=1", "data_file"]
        .iter()
        .any(|s| shape.ends_with(s) || shape.contains("data_file"))
}

fn writes(lab: &Lab, model: &mut Model<'_>) -> Result<()> {
    with_top(lab, model, |chain, model| {
        model.write(chain, 0, 4096, 1)?;
        model.flush(chain)?;
        model.write(chain, 2048, 70 << 10, 2)?;
        model.write(chain, 300 << 10, 10 << 10, 3)?;
        model.flush(chain)?;
        model.zero(chain, 8 << 10, 64 << 10, true)?;
        model.write(chain, 200 << 10, 64 << 10, 4)?;
        model.flush(chain)?;
        model.zero(chain, 210 << 10, 20 << 10, false)?;
        model.write(chain, 16 << 10, 512, 5)?;
        model.write(chain, 128 << 10, 130 << 10, 6)?;
        model.flush(chain)
    })
}

#[test]
fn writes_and_zeroes() {
    run("writes", false, any, &writes);
    run("writes over a base", true, any, &writes);
}

#[test]
fn encrypted_writes() {
    run_shapes("encrypted writes", false, &[ENCRYPTED], &|lab, model| {
        with_top(lab, model, |chain, model| {
            model.write(chain, 2048, 20 << 10, 1)?;
            model.flush(chain)?;
            model.write(chain, 300 << 10, 10 << 10, 2)?;
            model.write(chain, 16 << 10, 512, 3)?;
            model.flush(chain)
        })
    });
}

#[test]
fn discards() {
    run("discards", false, any, &|lab, model| {
        with_top(lab, model, |chain, model| {
            model.write(chain, 0, 300 << 10, 3)?;
            model.flush(chain)?;
            // Whole clusters of every shape.
            model.discard(chain, 64 << 10, 128 << 10)?;
            model.write(chain, 128 << 10, 90 << 10, 4)?;
            model.flush(chain)?;
            model.discard(chain, 0, 64 << 10)?;
            model.write(chain, 320 << 10, 40 << 10, 5)
        })
    });
}

#[test]
fn compressed_writes() {
    run(
        "compressed writes",
        false,
        |s| !s.contains("data_file"),
        &|lab, model| {
            with_top(lab, model, |chain, model| {
                let cluster = chain.top().info()?.cluster_size.unwrap();
                for round in 1..4u8 {
                    for n in 0..5 {
                        let at = n * cluster;
                        model.compressed(chain, at, cluster.min(SIZE - at), round * 16 + n as u8)?;
                    }
                    model.flush(chain)?;
                }
                model.write(chain, 512, 5120, 99)
            })
        },
    );
}

#[test]
fn resizing() {
    run("resize", false, any, &|lab, model| {
        with_top(lab, model, |chain, model| {
            let to = |virtual_size| Resize {
                virtual_size,
                shrink: true,
                ..Resize::default()
            };
            model.write(chain, 0, 100 << 10, 1)?;
            model.flush(chain)?;
            chain.top().resize(&to(2 << 20))?;
            model.write(chain, 1 << 20, 100 << 10, 2)?;
            model.flush(chain)?;
            chain.top().resize(&to(300 << 10))?;
            model.write(chain, 200 << 10, 10 << 10, 7)
        })
    });
    run(
        "resize with metadata",
        false,
        |s| !s.contains("data_file"),
        &|lab, model| {
            with_top(lab, model, |chain, _| {
                chain.top().resize(&Resize {
                    virtual_size: 1 << 20,
                    shrink: false,
                    preallocation: Preallocation::Metadata,
                })
            })
        },
    );
}

#[test]
fn snapshots() {
    run("snapshots", false, counts_and_marks, &|lab, model| {
        with_top(lab, model, |chain, model| {
            model.write(chain, 0, 100 << 10, 1)?;
            model.flush(chain)?;
            model.snapshot(chain, "one")?;
            model.write(chain, 50 << 10, 100 << 10, 2)?;
            model.snapshot(chain, "two")?;
            model.write(chain, 0, 60 << 10, 3)?;
            model.flush(chain)?;
            model.apply(chain, "one")?;
            model.flush(chain)?;
            model.forget(chain, "one")?;
            model.write(chain, 20 << 10, 10 << 10, 4)?;
            model.flush(chain)?;
            model.forget(chain, "two")
        })
    });
}

#[test]
fn bitmaps() {
    run("bitmaps", false, |s| !s.contains("0.10"), &|lab, model| {
        with_top(lab, model, |chain, model| {
            let bitmaps = chain.top().bitmaps().unwrap();
            bitmaps.add("one", 4096, true)?;
            bitmaps.add("two", 512, false)?;
            model.write(chain, 0, 100 << 10, 1)?;
            chain.top().close()?;
            model.flushed();
            bitmaps.mark("two", &[(0, 4096)])?;
            bitmaps.set_enabled("two", true)?;
            bitmaps.clear("one")?;
            chain.top().resize(&Resize {
                virtual_size: 1 << 20,
                ..Resize::default()
            })?;
            model.write(chain, 900 << 10, 10 << 10, 2)?;
            bitmaps.remove("one")
        })
    });
}

#[test]
fn amending() {
    let wide = |s: &str| !s.contains("extended_l2") && !s.contains("data_file") && !s.contains("refcount_bits");
    run("amend", false, wide, &|lab, model| {
        with_top(lab, model, |chain, model| {
            model.write(chain, 0, 100 << 10, 1)?;
            model.zero(chain, 4096, 8192, true)?;
            model.flush(chain)?;
            for option in [
                "compat=1.1",
                "refcount_bits=64",
                "refcount_bits=16",
                "lazy_refcounts=on",
                "compat=0.10",
            ] {
                chain.top().amend(&options(option), false, &Control::default())?;
            }
            model.write(chain, 200 << 10, 8192, 2)
        })
    });
}

#[test]
fn downgrading_with_snapshots() {
    let wide = |s: &str| counts_and_marks(s) && !s.contains("extended_l2") && !s.contains("refcount_bits");
    run("downgrade with snapshots", true, wide, &|lab, model| {
        with_top(lab, model, |chain, model| {
            model.write(chain, 0, 40 << 10, 1)?;
            model.zero(chain, 40 << 10, 16 << 10, true)?;
            model.snapshot(chain, "one")?;
            model.zero(chain, 8 << 10, 16 << 10, false)?;
            model.write(chain, 100 << 10, 16 << 10, 2)?;
            model.zero(chain, 96 << 10, 16 << 10, false)?;
            model.flush(chain)?;
            chain.top().amend(&options("compat=0.10"), false, &Control::default())?;
            model.write(chain, 200 << 10, 8192, 2)
        })
    });
}

fn mend(lab: &Lab, repair: Repair) -> Result<()> {
    let chain = lab.for_check("top", "qcow2")?;
    check(&chain, repair)?;
    chain.top().close()
}

#[test]
fn repairing() {
    for repair in [Repair::Leaks, Repair::All] {
        for shape in [
            "cluster_size=4096",
            "cluster_size=512,refcount_bits=64",
            "cluster_size=1024,lazy_refcounts=on",
        ] {
            let mut files = start(shape, false);
            let top = &mut files.iter_mut().find(|(name, _)| name == "top").unwrap().1;
            let table = u64::from_be_bytes(top[48..56].try_into().unwrap()) as usize;
            let block = u64::from_be_bytes(top[table..table + 8].try_into().unwrap()) as usize;
            let width = if shape.contains("64") { 8 } else { 2 };
            // A leak behind everything, and for `all` a count that is too high.
            let clusters = top.len() / if shape.contains("512") { 512 } else { 1024 };
            top[block + width * (clusters % 50 + 300) + width - 1] = 1;
            if repair == Repair::All {
                top[block + width * 5 + width - 1] = 3;
            }
            let scenario = Scenario {
                name: format!("check -r {repair:?}, {shape}"),
                format: "qcow2",
                start: files,
                most: SIZE,
                damaged: true,
                script: &|lab, _| mend(lab, repair),
            };
            let count = scenario.power_cuts();
            println!(
                "{}: {count} power-cut states, {} failing changes",
                scenario.name,
                scenario.failures()
            );
        }
    }
}

#[test]
fn commit() {
    for empty in [true, false] {
        run(&format!("commit, empty {empty}"), true, any, &|lab, _| {
            let chain = lab.chain("top", "qcow2", &[0, 1])?;
            ops::commit::commit(&chain, 1, empty, &CopyOptions::default(), &Control::default())
        });
    }
}

#[test]
fn rebase() {
    for base in [Some("other"), None] {
        run(&format!("rebase to {base:?}"), true, any, &|lab, _| {
            let chain = lab.chain("top", "qcow2", &[0])?;
            let new = base.map(|name| lab.chain(name, "qcow2", &[])).transpose()?;
            let backing = base.map(|name| BackingReference {
                name: name.into(),
                format: Some("qcow2".into()),
            });
            ops::rebase::rebase(
                &chain,
                new.as_ref(),
                backing.as_ref(),
                &CopyOptions::default(),
                &Control::default(),
            )
        });
    }
}
