//! Over another disk: which one, and what a change of it leaves.

use super::{BLOCK, filled, open_on, small_blocks};
use crate::formats::testing::crash::at_every_change;
use crate::formats::testing::{All, file, seen};
use crate::image::BackingReference;
use crate::storage::Fault;

fn reference(name: &str) -> BackingReference {
    BackingReference {
        name: name.into(),
        format: Some("vpc".into()),
    }
}

#[test]
fn another_disk_below_is_named_with_its_id() {
    let (bytes, content) = filled(true);
    let storage = file(bytes);
    let image = open_on(storage.clone()).unwrap();
    assert_eq!(image.backing(), Some(reference("base.vhd")));
    let base = open_on(file(small_blocks(300 * BLOCK, false))).unwrap();
    assert!(image.check_below(base.as_ref()).is_err());
    image
        .set_backing_over(Some(&reference("dir/new base.vhd")), Some(base.as_ref()))
        .unwrap();
    image.check_below(base.as_ref()).unwrap();
    image.write(0, &[1; 512], &All(0x55)).unwrap();
    image.close().unwrap();
    let again = open_on(storage).unwrap();
    assert_eq!(again.backing(), Some(reference("dir/new base.vhd")));
    again.check_below(base.as_ref()).unwrap();
    let now = seen(again.as_ref(), 0x55);
    assert!(now[512..] == content[512..] && now[..512] == [1; 512]);
    let smaller = open_on(file(small_blocks(BLOCK, false))).unwrap();
    assert!(
        image
            .set_backing_over(Some(&reference("x")), Some(smaller.as_ref()))
            .is_err()
    );
}

#[test]
fn without_a_disk_below_the_missing_sectors_are_zero() {
    let (mut bytes, content) = filled(true);
    // Another program may have left anything in the sectors that it does not have.
    let first = u32::from_be_bytes(bytes[1536 + 12..1536 + 16].try_into().unwrap()) as usize * 512 + 512;
    bytes[first..first + 512].fill(0xbb);
    let storage = file(bytes);
    let image = open_on(storage.clone()).unwrap();
    image.set_backing(None).unwrap();
    assert_eq!(image.backing(), None);
    image.close().unwrap();
    let again = open_on(storage).unwrap();
    assert_eq!(again.backing(), None);
    let now = seen(again.as_ref(), 0xdd);
    let expected: Vec<u8> = content.iter().map(|b| if *b == 0x55 { 0 } else { *b }).collect();
    assert!(now == expected);
}

#[test]
fn a_crash_while_the_disk_below_changes_leaves_one_of_the_two() {
    let (bytes, content) = filled(true);
    for name in [Some("other.vhd"), None] {
        let backing = name.map(reference);
        let work = |storage| open_on(storage).unwrap().set_backing(backing.as_ref()).unwrap();
        at_every_change(&bytes, &[Fault::Freeze], work, |left, crash| {
            let after = open_on(file(left)).unwrap();
            let found = after.backing();
            assert!(
                found == Some(reference("base.vhd")) || found == backing,
                "{crash}: {found:?}"
            );
            if found.is_some() {
                assert!(seen(after.as_ref(), 0x55) == content, "{crash}");
            }
        });
    }
}
