//! Mending: footers and sums written again, space given back.

use super::super::layout::{FOOTER, HEADER, UNUSED};
use super::{BLOCK, filled, open_on, open_to_check};
use crate::Control;
use crate::formats::testing::{file, seen};
use crate::image::Repair;

#[test]
fn a_lost_footer_at_the_end_is_written_again() {
    let (bytes, content) = filled(false);
    let cut = bytes[..bytes.len() - FOOTER as usize].to_vec();
    let (storage, image) = open_to_check(cut);
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!((report.corruptions, report.leaks), (1, 0), "{:?}", report.messages);
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert_eq!((report.corruptions, report.corruptions_fixed), (0, 1));
    assert!(storage.contents() == bytes);
    assert!(seen(image.as_ref(), 0) == content);
}

#[test]
fn wrong_sums_are_mended() {
    let (good, _) = filled(false);
    let end = good.len() - FOOTER as usize;
    // The sum of the last footer, of the header, a byte of the front copy.
    for at in [end + 64, (FOOTER + 36) as usize, 100] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        assert!(open_on(file(bytes.clone())).is_err(), "{at}");
        let (storage, image) = open_to_check(bytes);
        let report = image.check(Repair::All, &Control::default()).unwrap();
        assert_eq!(
            (report.corruptions, report.corruptions_fixed),
            (0, 1),
            "{at}: {:?}",
            report.messages
        );
        assert!(storage.contents() == good, "{at}");
    }
}

#[test]
fn space_that_nothing_refers_to_is_given_back() {
    let (mut bytes, _) = filled(false);
    let entry = |block: usize| 1536 + block * 4;
    assert_eq!(HEADER + FOOTER, 1536);
    bytes[entry(150)..entry(151)].copy_from_slice(&UNUSED.to_be_bytes());
    let (storage, image) = open_to_check(bytes.clone());
    let report = image.check(Repair::Leaks, &Control::default()).unwrap();
    assert_eq!((report.leaks, report.leaks_fixed, report.corruptions), (0, 1, 0));
    assert_eq!(storage.contents().len(), bytes.len() - 512 - BLOCK as usize);
    let again = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!((again.leaks, again.corruptions), (0, 0), "{:?}", again.messages);
}
