//! Behaviour: a byte array under any operations; crashes, disks below and what the file holds besides guest data in files of their own.

mod backing;
mod crash;
mod metadata;

use std::cell::Cell;
use std::sync::Arc;

use proptest::prelude::*;

use super::Vhdx;
use super::layout::MIB;
use crate::env::CreateSpec;
use crate::formats::FormatDriver;
use crate::formats::testing::bytes::{ByteArray, Op, assert_sound};
use crate::formats::testing::{self, All, file, to_size};
use crate::gate::{Gate, Node, Reference};
use crate::image::BackingReference;
use crate::options::Options;
use crate::storage::MemoryStorage;
use crate::{Error, Image, Limits, OpenEnv, Result, StorageRef};

const SIZE: u64 = 6 * MIB + 512;

/// Knows one disk, whatever the name.
struct Base(Option<StorageRef>);

impl Gate for Base {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        let storage = self.0.clone().ok_or_else(|| Error::denied(reference.name))?;
        Ok(Node::new(storage, "vhdx"))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Err(Error::denied(reference.name))
    }
}

fn create(size: u64, options: Options, base: Option<StorageRef>) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::empty());
    let next = Cell::new(1u8);
    let random = |bytes: &mut [u8]| bytes.fill(next.replace(next.get() + 1));
    let spec = CreateSpec {
        virtual_size: size,
        options: options.with("block_size", "1M"),
        backing: base.as_ref().map(|_| reference("base.vhdx")),
    };
    testing::create_on(&Vhdx, storage.clone(), &spec, &Base(base), &random).unwrap();
    storage.contents()
}

fn reference(name: &str) -> BackingReference {
    BackingReference {
        name: name.into(),
        format: Some("vhdx".into()),
    }
}

pub(super) fn created(size: u64, options: Options) -> Vec<u8> {
    create(size, options, None)
}

pub(super) fn overlay(size: u64) -> Vec<u8> {
    create(size, Options::new(), Some(file(created(size, Options::new()))))
}

fn new_image(is_overlay: bool, size: u64) -> Vec<u8> {
    if is_overlay {
        overlay(size)
    } else {
        created(size, Options::new())
    }
}

pub(super) fn open_on(storage: StorageRef) -> Result<Box<dyn Image>> {
    testing::open_on(&Vhdx, storage)
}

pub(super) fn open_to_check(bytes: Vec<u8>) -> (Arc<MemoryStorage>, Box<dyn Image>) {
    testing::open_to_check(&Vhdx, bytes)
}

fn open_to_read(bytes: Vec<u8>) -> Result<Box<dyn Image>> {
    let limits = Limits::default();
    let storage = file(bytes);
    Vhdx.open(storage, &Options::new(), &OpenEnv::closed(&limits))
}

/// An image with data in some blocks, and what it shows.
fn filled(is_overlay: bool, blocks: u64) -> (Vec<u8>, Vec<u8>) {
    testing::changed(&Vhdx, new_image(is_overlay, blocks * MIB), 0x55, |image| {
        for block in [1u64, 0] {
            image
                .write(block * MIB + 512, &[block as u8 + 1; 6 * 512], &All(0x55))
                .unwrap();
        }
    })
}

fn op() -> impl Strategy<Value = Op> {
    let range = prop_oneof![
        (0..SIZE, 1..5000u64),
        (0..SIZE, 1..3 * MIB),
        (0..7u64, 1..3u64).prop_map(|(o, l)| (o * MIB, l * MIB))
    ];
    let range = range.prop_map(|(o, l)| (o.min(SIZE - 1), l.min(SIZE - o.min(SIZE - 1))));
    prop_oneof![
        6 => (range.clone(), 1..=255u8).prop_map(|((o, l), b)| Op::Write(o, l, b)),
        3 => (range.clone(), any::<bool>()).prop_map(|((o, l), u)| Op::Zero(o, l, u)),
        1 => range.prop_map(|(o, l)| Op::Discard(o, l)),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => (SIZE / 512..20_000u64).prop_map(|s| Op::Resize(s * 512)),
        1 => Just(Op::MakeEmpty),
    ]
}

fn run(kind: &str, ops: &[Op]) {
    let is_overlay = kind == "differencing";
    let bytes = if is_overlay {
        overlay(SIZE)
    } else {
        created(SIZE, Options::new().with("subformat", kind))
    };
    let mut disk = ByteArray::new(&Vhdx, bytes, SIZE, if is_overlay { 0x55 } else { 0 });
    for op in ops {
        match op {
            Op::Resize(size) if is_overlay => assert!(disk.image.resize(&to_size(*size)).is_err()),
            op => disk.apply(op),
        }
    }
    assert_sound(disk.finish().as_ref());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn it_is_a_byte_array_under_any_operations(
        kind in prop::sample::select(vec!["fixed", "dynamic", "differencing"]),
        ops in prop::collection::vec(op(), 1..16),
    ) {
        run(kind, &ops);
    }
}
