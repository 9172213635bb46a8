//! An image behaves as a byte array under any list of operations.

use proptest::prelude::*;

use crate::support::{Files, assert_clean, contents, drivers};

const SIZE: u64 = 3 << 20;

#[derive(Debug, Clone)]
enum Op {
    Write { offset: u64, len: u64, fill: u8 },
    Zero { offset: u64, len: u64, unmap: bool },
    Flush,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    // Offsets and lengths in sectors, often at the edges that matter to clusters.
    let offset = prop_oneof![0..SIZE / 512, (0..SIZE / 65_536).prop_map(|c| c * 128)].prop_map(|s| s * 512);
    let len = prop_oneof![4 => 1u64..40, 1 => 1u64..1500].prop_map(|s| s * 512);
    prop_oneof![
        5 => (offset.clone(), len.clone(), 1u8..).prop_map(|(offset, len, fill)| Op::Write { offset, len, fill }),
        2 => (offset, len, any::<bool>()).prop_map(|(offset, len, unmap)| Op::Zero { offset, len, unmap }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

fn run(format: &'static dyn vdisk_engine::formats::FormatDriver, ops: &[Op]) {
    let files = Files::default();
    files.create("disk", format.name(), SIZE, None).unwrap();
    let mut chain = files.open("disk", format.name(), true).unwrap();
    let mut model = vec![0u8; chain.virtual_size() as usize];
    for op in ops {
        match *op {
            Op::Write { offset, len, fill } => {
                let len = len.min(SIZE - offset);
                chain.write(offset, &vec![fill; len as usize]).unwrap();
                model[offset as usize..(offset + len) as usize].fill(fill);
            }
            Op::Zero { offset, len, unmap } => {
                let len = len.min(SIZE - offset);
                chain.write_zeroes(offset, len, unmap).unwrap();
                model[offset as usize..(offset + len) as usize].fill(0);
            }
            Op::Flush => chain.top().flush().unwrap(),
            Op::Reopen => {
                chain.top().close().unwrap();
                drop(chain);
                chain = files.open("disk", format.name(), true).unwrap();
            }
        }
    }
    assert!(contents(&chain) == model, "{}: before closing", format.name());
    chain.top().close().unwrap();
    drop(chain);
    assert!(
        contents(&files.open("disk", format.name(), false).unwrap()) == model,
        "{}: after opening again",
        format.name()
    );
    assert_clean(&files, "disk", format);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn an_image_is_a_byte_array(ops in prop::collection::vec(op(), 1..30)) {
        for driver in drivers(|d| d.capabilities().create && d.capabilities().write && d.capabilities().zero) {
            run(driver, &ops);
        }
    }
}
