//! Over another disk: which one, and what a change of it leaves.

use super::super::layout::MIB;
use super::{created, filled, open_on, open_to_read, reference};
use crate::Control;
use crate::formats::testing::crash::at_every_change;
use crate::formats::testing::{All, file, seen};
use crate::image::{NothingBelow, Repair};
use crate::options::Options;
use crate::storage::Fault;

#[test]
fn another_disk_below_is_named_with_its_id() {
    let (bytes, content) = filled(true, 4);
    let storage = file(bytes);
    let image = open_on(storage.clone()).unwrap();
    assert_eq!(image.backing(), Some(reference("base.vhdx")));
    let mut base = created(4 * MIB, Options::new());
    let changed = file(base.clone());
    let writer = open_on(changed.clone()).unwrap();
    writer.write(0, &[1], &NothingBelow).unwrap();
    writer.close().unwrap();
    base = changed.contents();
    let base = open_to_read(base).unwrap();
    assert!(image.check_below(base.as_ref()).is_err());
    for name in ["dir/new base.vhdx", "short", &"long/".repeat(200)] {
        let name = format!("{name}/x");
        image
            .set_backing_over(Some(&reference(&name)), Some(base.as_ref()))
            .unwrap();
        image.check_below(base.as_ref()).unwrap();
        assert_eq!(image.backing(), Some(reference(&name)));
    }
    image.write(0, &[1; 512], &All(0x55)).unwrap();
    image.close().unwrap();
    let again = open_on(storage).unwrap();
    again.check_below(base.as_ref()).unwrap();
    let now = seen(again.as_ref(), 0x55);
    assert!(now[512..] == content[512..] && now[..512] == [1; 512]);
    let smaller = open_to_read(created(MIB, Options::new())).unwrap();
    assert!(
        image
            .set_backing_over(Some(&reference("x")), Some(smaller.as_ref()))
            .is_err()
    );
}

#[test]
fn without_a_disk_below_the_missing_sectors_are_zero() {
    let (bytes, content) = filled(true, 4);
    let storage = file(bytes);
    let image = open_on(storage.clone()).unwrap();
    image.set_backing(None).unwrap();
    assert_eq!(image.backing(), None);
    image.close().unwrap();
    let again = open_on(storage).unwrap();
    assert_eq!(again.backing(), None);
    let expected: Vec<u8> = content.iter().map(|b| if *b == 0x55 { 0 } else { *b }).collect();
    assert!(seen(again.as_ref(), 0xdd) == expected);
    let report = again.check(Repair::No, &Control::default()).unwrap();
    assert_eq!(report.corruptions, 0, "{:?}", report.messages);
}

#[test]
fn a_crash_while_the_disk_below_changes_leaves_one_of_the_two() {
    let (bytes, content) = filled(true, 3);
    let alone: Vec<u8> = content.iter().map(|b| if *b == 0x55 { 0 } else { *b }).collect();
    for name in [Some("other.vhdx"), None] {
        let backing = name.map(reference);
        let work = |storage| open_on(storage).unwrap().set_backing(backing.as_ref()).unwrap();
        at_every_change(&bytes, &[Fault::Freeze], work, |left, crash| {
            let after = open_to_read(left).unwrap();
            let found = after.backing();
            assert!(
                found == Some(reference("base.vhdx")) || found == backing,
                "{crash}: {found:?}"
            );
            let now = seen(after.as_ref(), if found.is_some() { 0x55 } else { 0 });
            match (name, &found) {
                (Some(_), _) => assert!(now == content, "{crash}"),
                (None, None) => assert!(now == alone, "{crash}"),
                // What it does not have of its blocks becomes zero before the disk below goes: a rebase has copied it by then.
                (None, Some(_)) => {
                    let mut bytes = now.iter().zip(content.iter().zip(&alone));
                    assert!(bytes.all(|(now, (old, new))| now == old || now == new), "{crash}");
                }
            }
        });
    }
}
