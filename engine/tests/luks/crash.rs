//! A crash at any write of a key change leaves the keys that were not touched.

use std::sync::Arc;

use vdisk_engine::crypto::luks::{EraseKeys, KdfCost, KeyWork, LuksHeader, NewKey};
use vdisk_engine::image::Repair;
use vdisk_engine::options::Options;
use vdisk_engine::storage::{Fault, FaultyStorage, MemoryStorage};
use vdisk_engine::{Control, Limits, StorageRef};

use super::support::{create_on, in_memory, key_env, metadata};

fn two_keys() -> Vec<u8> {
    let memory = Arc::new(MemoryStorage::empty());
    let options = Options::new().with("iterations", "1000").with("cipher-alg", "aes-128");
    create_on(memory.clone(), 1 << 20, options, "first").unwrap();
    change(memory.clone(), |header, limits| {
        header.add_key(b"first", &new(b"second"), &key_env(limits)).map(|_| ())
    })
    .unwrap();
    memory.contents()
}

fn new(passphrase: &[u8]) -> NewKey<'_> {
    NewKey {
        passphrase,
        slot: None,
        cost: KdfCost::Iterations(1000),
        overwrite: false,
    }
}

fn change(
    storage: StorageRef,
    work: impl Fn(&mut LuksHeader, &Limits) -> vdisk_engine::Result<()>,
) -> vdisk_engine::Result<()> {
    let limits = Limits::default();
    let mut header = LuksHeader::read(storage, &KeyWork::within(&limits))?;
    work(&mut header, &limits)
}

fn opens(bytes: &[u8], passphrase: &[u8]) -> bool {
    let limits = Limits::default();
    let work = KeyWork::within(&limits);
    let header = LuksHeader::read(Arc::new(MemoryStorage::new("left", bytes.to_vec())), &work).unwrap();
    header.test_key(passphrase, None, &work).is_ok()
}

#[test]
fn every_crash_of_a_key_change_leaves_the_other_keys() {
    let before = two_keys();
    type Work = fn(&mut LuksHeader, &Limits) -> vdisk_engine::Result<()>;
    let add: Work = |header, limits| header.add_key(b"first", &new(b"third"), &key_env(limits)).map(|_| ());
    let replace: Work = |header, limits| {
        header
            .change_key(b"first", &new(b"third"), &key_env(limits))
            .map(|_| ())
    };
    let erase: Work = |header, limits| {
        header
            .erase_keys(EraseKeys::Matching(b"first"), false, &key_env(limits))
            .map(|_| ())
    };
    for (name, work) in [("add", add), ("replace", replace), ("erase", erase)] {
        at_every_change(&before, &FAULTS, work, |left, crash| {
            assert!(opens(left, b"second"), "{name}: {crash}");
            assert!(
                opens(left, b"first") || opens(left, b"third") || name == "erase",
                "{name}: {crash}"
            );
        });
    }
}

/// The copy that counts is the last one to be written: until then the other one is worth nothing.
#[test]
fn a_crash_while_one_luks2_copy_is_weak_leaves_the_other() {
    const COPY: usize = 0x4000;
    let memory = in_memory("2", 1 << 16);
    let old = memory.contents();
    change(memory.clone(), |header, limits| {
        header.add_key(b"first", &new(b"second"), &key_env(limits)).map(|_| ())
    })
    .unwrap();
    let good = memory.contents();
    let with = |place: std::ops::Range<usize>, from: &[u8]| {
        let mut bytes = good.clone();
        bytes[place.clone()].copy_from_slice(&from[place]);
        bytes
    };
    let zero = vec![0; 2 * COPY];
    for (name, before) in [
        ("first damaged", with(5000..5016, &zero)),
        ("second damaged", with(COPY + 5000..COPY + 5016, &zero)),
        ("first out of date", with(0..COPY, &old)),
        ("second out of date", with(COPY..2 * COPY, &old)),
    ] {
        at_every_change(
            &before,
            &FAULTS,
            |header, limits| header.add_key(b"first", &new(b"third"), &key_env(limits)).map(|_| ()),
            |left, crash| assert!(opens(left, b"first") && opens(left, b"second"), "{name}: {crash}"),
        );
    }
}

/// A write that fails leaves a copy that is not to be relied on: the next change begins with it.
#[test]
fn a_change_after_one_that_failed_begins_with_the_copy_that_was_hit() {
    let memory = in_memory("2", 1 << 16);
    let before = memory.contents();
    // Key material, flush, a copy, flush, the other copy.
    for failing in 0..5 {
        for then in 0..6 {
            let storage = Arc::new(FaultyStorage::new(before.clone()));
            let _ = change(storage.clone(), |header, limits| {
                storage.plan(failing, Fault::FailOnce(std::io::ErrorKind::StorageFull));
                let env = key_env(limits);
                let _ = header.add_key(b"first", &new(b"second"), &env);
                storage.plan(then, Fault::Tear);
                header.add_key(b"first", &new(b"third"), &env).map(|_| ())
            });
            assert!(opens(&storage.contents(), b"first"), "{failing} failed, {then} torn");
        }
    }
}

const FAULTS: [Fault; 3] = [
    Fault::Freeze,
    Fault::Tear,
    Fault::FailForever(std::io::ErrorKind::Other),
];

/// Cuts `work` off at each of its changes and gives `judge` what is left; the last time nothing is cut off.
fn at_every_change(
    before: &[u8],
    faults: &[Fault],
    work: impl Fn(&mut LuksHeader, &Limits) -> vdisk_engine::Result<()>,
    judge: impl Fn(&[u8], &str),
) {
    for fault in faults.iter().copied() {
        let mut at = 0;
        loop {
            let storage = Arc::new(FaultyStorage::new(before.to_vec()));
            storage.plan(at, fault);
            let done = change(storage.clone(), &work);
            judge(&storage.contents(), &format!("{fault:?} at change {at}"));
            if storage.changes() <= at {
                done.unwrap();
                break;
            }
            at += 1;
        }
        assert!(at > 2, "only {at} changes");
    }
}

#[test]
fn a_new_key_in_the_slot_of_the_only_one_never_leaves_none() {
    let in_place = NewKey {
        slot: Some(0),
        overwrite: true,
        ..new(b"third")
    };
    type Work<'a> = &'a dyn Fn(&mut LuksHeader, &Limits) -> vdisk_engine::Result<u32>;
    let change_key: Work<'_> = &|header, limits| header.change_key(b"first", &in_place, &key_env(limits));
    let add_key: Work<'_> = &|header, limits| header.add_key(b"first", &in_place, &key_env(limits));
    for (version, work) in [("1", change_key), ("1", add_key), ("2", change_key)] {
        let memory = in_memory(version, 1 << 20);
        at_every_change(
            &memory.contents(),
            &[Fault::Freeze],
            |header, limits| work(header, limits).map(|slot| assert_eq!(slot, 0)),
            |left, crash| assert!(opens(left, b"first") || opens(left, b"third"), "LUKS{version}: {crash}"),
        );
        change(memory.clone(), |header, limits| {
            work(header, limits)?;
            assert_eq!(header.active_slots(), [0]);
            Ok(())
        })
        .unwrap();
        assert!(opens(&memory.contents(), b"third") && !opens(&memory.contents(), b"first"));
    }
}

/// The key is gone when the headers of before do not bring it back either.
#[test]
fn an_erasure_that_was_cut_off_is_ended_by_force() {
    let limits = Limits::default();
    for (version, header_len) in [("1", 592), ("2", 0x8000)] {
        let memory = in_memory(version, 1 << 16);
        change(memory.clone(), |header, limits| {
            header.add_key(b"first", &new(b"second"), &key_env(limits)).map(|_| ())
        })
        .unwrap();
        let before = memory.contents();
        let erase = |force| {
            move |header: &mut LuksHeader, limits: &Limits| {
                header
                    .erase_keys(EraseKeys::Slot(1), force, &key_env(limits))
                    .map(|_| ())
            }
        };
        at_every_change(&before, &FAULTS, erase(false), |left, crash| {
            let storage = Arc::new(MemoryStorage::new("left", left.to_vec()));
            change(storage.clone(), erase(true)).unwrap();
            let ended = storage.contents();
            assert!(opens(&ended, b"first"), "LUKS{version}: {crash}");
            let with_old_header = [&before[..header_len], &ended[header_len..]].concat();
            assert!(opens(&with_old_header, b"first"), "LUKS{version}: {crash}");
            for copies in [
                &ended,
                &with_old_header,
                &without_copy(&ended, 0),
                &without_copy(&ended, 0x4000),
            ] {
                assert!(!opens(copies, b"second"), "LUKS{version}: {crash}");
            }
            let report = metadata(storage, &limits)
                .unwrap()
                .check(Repair::No, &Control::default());
            assert_eq!(report.unwrap().corruptions, 0, "LUKS{version}: {crash}");
        });
    }
}

/// A LUKS2 image that has lost the magic of one header copy; any other as it is.
fn without_copy(image: &[u8], at: usize) -> Vec<u8> {
    let mut image = image.to_vec();
    if image[6..8] == [0, 2] {
        image[at..at + 6].fill(0);
    }
    image
}

#[test]
fn a_header_copy_that_is_out_of_date_is_told() {
    let limits = Limits::default();
    let memory = in_memory("2", 1 << 16);
    let old = memory.contents();
    change(memory.clone(), |header, limits| {
        header.add_key(b"first", &new(b"second"), &key_env(limits)).map(|_| ())
    })
    .unwrap();
    let good = memory.contents();
    for (name, place) in [("first", 0..0x4000), ("second", 0x4000..0x8000)] {
        let mut bytes = good.clone();
        bytes[place.clone()].copy_from_slice(&old[place]);
        let storage = Arc::new(MemoryStorage::new("stale", bytes));
        let image = metadata(storage.clone(), &limits).unwrap();
        let report = image.check(Repair::No, &Control::default()).unwrap();
        let told = format!("the {name} header copy is out of date");
        assert_eq!(report.corruptions, 1, "{name}");
        assert!(report.messages[0].starts_with(&told), "{:?}", report.messages);
        let refused = change(storage, |header, limits| {
            header
                .erase_keys(EraseKeys::Slot(7), false, &key_env(limits))
                .map(|_| ())
        });
        assert!(refused.unwrap_err().to_string().contains(&told), "{name}");
    }
}
