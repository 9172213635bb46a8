//! The same operations by qemu's tools and by ours leave the same content, map, bitmaps, snapshots and check.
//!
//! `VDISK_SEQUENCES` sets the number of sequences (500 without it), `VDISK_SEED` the first seed.

mod compare;
mod folder;
mod steps;

use e2e::tools::have;
use vdisk_engine::Image;

use self::folder::{Folder, Shape};
use self::steps::Step;
use crate::support::Scratch;

/// A small generator, so that a sequence is its seed.
pub struct Random(u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
    pub fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize].clone()
    }
    /// A range of sectors that begins below `size` and is at most `reach` bytes long.
    pub fn range(&mut self, size: u64, reach: u64) -> (u64, u64) {
        let at = self.below(size.div_ceil(512)) * 512;
        let len = (1 + self.below(reach / 512)) * 512;
        (at, len.min(size - at))
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Runs one sequence and gives the number of steps that worked; what it did is in the panic's message when the images differ.
fn run(seed: u64) -> usize {
    let scratch = Scratch::new();
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for _ in 0..3 {
        random.below(2);
    }
    let shape = Shape::choose(&mut random);
    let (ours, theirs) = (Folder::new(scratch.file("ours")), Folder::new(scratch.file("theirs")));
    ours.fill(&shape, &mut random);
    theirs.copy_from(&ours);
    // In some sequences our folder is changed by both in turn: each must take what the other left.
    let mixed = random.below(4) == 0;
    let mut done = format!("seed {seed}, mixed: {mixed}, {shape:#?}\n");
    let trace = std::env::var_os("VDISK_TRACE").is_some();
    if trace {
        eprint!("{done}");
    }
    let mut worked = 0;
    let mut leaks = false;
    for _ in 0..4 + random.below(8) {
        let now = theirs.alone("top", false).unwrap();
        let step = Step::choose(&mut random, &shape, now.top());
        // What qemu-img rebases then shows the base wherever it had zeroes; tests/conformance/bases.rs has what ours shows.
        if matches!(
            step,
            Step::Rebase {
                base: Some(_),
                safe: true
            }
        ) && is_bare_version_2(now.top())
        {
            break;
        }
        drop(now);
        if trace {
            eprintln!("next: {step:?}");
        }
        let (peer_worked, said) = step.by_qemu(&theirs);
        let by_qemu = mixed && random.below(2) == 0;
        // A version 2 overlay that grows over a longer base, a snapshot of an image with bitmaps: we can.
        if said.contains("Failed to zero out new clusters") || said.contains("active dirty bitmaps") {
            return worked;
        }
        // qemu-img leaves clusters behind when it cannot take a snapshot.
        leaks |= by_qemu && !peer_worked;
        let result = match by_qemu {
            true => match step.by_qemu(&ours) {
                (true, _) => Ok("by qemu".to_owned()),
                (false, text) => Err(text),
            },
            false => step.by_us(&ours).map(|()| String::new()).map_err(|e| format!("{e:?}")),
        };
        // Refused by us in any image of that kind, by qemu-img only where it has clusters or other sizes.
        let refused = ["refcounts of 1 bit have no room", "with internal snapshots"];
        if result.as_ref().is_err_and(|e| refused.iter().any(|r| e.contains(r))) && peer_worked {
            return worked;
        }
        let line = format!("{step:?}: {peer_worked} {result:?}\n");
        if trace {
            eprint!("{line}");
        }
        done += &line;
        assert_eq!(peer_worked, result.is_ok(), "{done}qemu said: {said}");
        worked += usize::from(peer_worked);
    }
    let pair = compare::Pair {
        ours: &ours,
        theirs: &theirs,
        shape: &shape,
        done: &done,
        leaks,
    };
    pair.compare();
    worked
}

/// Whether an image has neither a base nor a way to say that something is zero.
fn is_bare_version_2(image: &dyn Image) -> bool {
    let compat = image.info().unwrap().specific.unwrap()["compat"].clone();
    image.backing().is_none() && compat == "0.10"
}

/// The sequences of one of the parts that run side by side.
fn part(part: u64) {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let (first, count) = (number("VDISK_SEED", 1), number("VDISK_SEQUENCES", 500));
    let seeds = (first..first + count).filter(|seed| seed % 4 == part);
    let (mut sequences, mut steps) = (0, 0);
    for seed in seeds {
        steps += run(seed);
        sequences += 1;
    }
    println!("{sequences} sequences, {steps} steps done alike");
}

#[test]
fn random_sequences_leave_the_same_images_0() {
    part(0);
}

#[test]
fn random_sequences_leave_the_same_images_1() {
    part(1);
}

#[test]
fn random_sequences_leave_the_same_images_2() {
    part(2);
}

#[test]
fn random_sequences_leave_the_same_images_3() {
    part(3);
}
