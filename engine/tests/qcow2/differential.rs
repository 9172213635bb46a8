//! The same operations by qemu's tools and by ours leave the same content, map and check.

use std::path::Path;

use e2e::tools::{arg, have, ok};
use vdisk_engine::Image;
use vdisk_engine::image::{ExtentKind, NothingBelow};
use vdisk_engine::options::Options;

use crate::support::{Scratch, assert_clean};

const SIZE: u64 = 2 << 20;
const SEQUENCES: u64 = 24;

/// A small generator, so that a sequence is its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

type Apply = Box<dyn Fn(&dyn Image)>;

/// One operation, for qemu-io and for us.
fn operation(random: &mut Random) -> (String, Apply) {
    let at = random.below(SIZE / 512) * 512;
    let reach = [8, 200, 1000][random.below(3) as usize];
    let len = (1 + random.below(reach)) * 512;
    let len = len.min(SIZE - at);
    let fill = 1 + random.below(250) as u8;
    match random.below(6) {
        0..=2 => (
            format!("write -P {fill} {at} {len}"),
            Box::new(move |image| image.write(at, &vec![fill; len as usize], &NothingBelow).unwrap()),
        ),
        3 => (
            format!("write -z {at} {len}"),
            Box::new(move |image| image.write_zeroes(at, len, false, &NothingBelow).unwrap()),
        ),
        4 => (
            format!("write -z -u {at} {len}"),
            Box::new(move |image| image.write_zeroes(at, len, true, &NothingBelow).unwrap()),
        ),
        _ => (
            format!("discard {at} {len}"),
            Box::new(move |image| image.discard(at, len).unwrap()),
        ),
    }
}

/// Start, length, present, zero and data of each entry of qemu's map.
fn qemu_map(path: &Path) -> Vec<(u64, u64, bool, bool)> {
    let map: Vec<serde_json::Value> =
        serde_json::from_str(&ok("qemu-img", &["map", "--output=json", "-f", "qcow2", arg(path)])).unwrap();
    let entry = |e: &serde_json::Value| {
        let flag = |key: &str| e[key].as_bool().unwrap();
        let number = |key: &str| e[key].as_u64().unwrap();
        (
            number("start"),
            number("length"),
            flag("present"),
            flag("zero") && !flag("data"),
        )
    };
    merged(map.iter().map(entry))
}

fn our_map(image: &dyn Image) -> Vec<(u64, u64, bool, bool)> {
    let mut list = Vec::new();
    let mut at = 0;
    while at < image.virtual_size() {
        let extent = image.extent(at, image.virtual_size() - at).unwrap();
        let (present, zero) = match extent.kind {
            ExtentKind::Unallocated => (false, true),
            ExtentKind::Zero { .. } => (true, true),
            ExtentKind::Data { .. } | ExtentKind::Compressed => (true, false),
        };
        list.push((at, extent.len, present, zero));
        at += extent.len;
    }
    merged(list.into_iter())
}

fn merged(entries: impl Iterator<Item = (u64, u64, bool, bool)>) -> Vec<(u64, u64, bool, bool)> {
    let mut list: Vec<(u64, u64, bool, bool)> = Vec::new();
    for (start, len, present, zero) in entries {
        match list.last_mut() {
            Some(last) if (last.2, last.3) == (present, zero) => last.1 += len,
            _ => list.push((start, len, present, zero)),
        }
    }
    list
}

#[test]
fn random_sequences_leave_the_same_image() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let shapes = [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512,refcount_bits=1",
        "cluster_size=4096",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16384",
    ];
    let scratch = Scratch::new();
    for seed in 0..SEQUENCES {
        let shape = shapes[(seed % shapes.len() as u64) as usize];
        let (ours, theirs) = (scratch.file("ours.qcow2"), scratch.file("theirs.qcow2"));
        let options = shape.split(',').fold(Options::new(), |options, pair| {
            let (name, value) = pair.split_once('=').unwrap();
            options.with(name, value)
        });
        scratch.create(&ours, SIZE, options);
        std::fs::copy(&ours, &theirs).unwrap();
        let mut random = Random(seed + 77);
        let image = scratch.open_writable(&ours);
        let mut commands = Vec::new();
        for _ in 0..12 {
            let (command, apply) = operation(&mut random);
            commands.push(command);
            apply(&*image);
        }
        image.close().unwrap();
        drop(image);
        let mut args = vec!["-f", "qcow2", "-d", "unmap"];
        commands.iter().for_each(|c| args.extend(["-c", c]));
        args.push(arg(&theirs));
        ok("qemu-io", &args);
        let what = format!("seed {seed}, {shape}: {commands:#?}");
        ok("qemu-img", &["check", "-f", "qcow2", arg(&ours)]);
        let same = e2e::tools::run(
            "qemu-img",
            &["compare", "-f", "qcow2", "-F", "qcow2", arg(&ours), arg(&theirs)],
        );
        assert!(same.status.success(), "content differs: {what}");
        let image = scratch.open(&ours);
        assert_eq!(
            our_map(&*image),
            qemu_map(&ours),
            "we and qemu see another map of our image: {what}"
        );
        assert_eq!(qemu_map(&ours), qemu_map(&theirs), "maps differ: {what}");
        assert_clean(&*image);
        assert_clean(&*scratch.open(&theirs));
    }
}
