//! Slots of LUKS2 that are no keys of the data, and new keys in the place of old ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use vdisk_engine::crypto::luks::{EraseKeys, KdfCost, KeyEnv, KeyWork, LuksHeader, NewKey};
use vdisk_engine::image::Repair;
use vdisk_engine::storage::{FaultyStorage, MemoryStorage};
use vdisk_engine::{Control, ErrorKind, Limits};

use super::luks2_hostile::{json_of, valid, with_text};
use super::support::{in_memory, key_env, metadata, open_on, random};

fn new(passphrase: &[u8]) -> NewKey<'_> {
    NewKey {
        passphrase,
        slot: None,
        cost: KdfCost::Iterations(1000),
        overwrite: false,
    }
}

/// A volume with a key in slot 0 and another one in slot 1, its JSON changed.
fn changed(change: impl Fn(&mut Value)) -> Arc<MemoryStorage> {
    let limits = Limits::default();
    let storage = Arc::new(MemoryStorage::new("slots", valid()));
    let mut header = LuksHeader::read(storage.clone(), &KeyWork::within(&limits)).unwrap();
    header.add_key(b"letmein", &new(b"other"), &key_env(&limits)).unwrap();
    let bytes = storage.contents();
    let mut json = json_of(&bytes);
    change(&mut json);
    Arc::new(MemoryStorage::new(
        "slots",
        with_text(&bytes, json.to_string().as_bytes()),
    ))
}

/// As `cryptsetup luksAddKey --unbound` leaves it: slot 1 holds the key of a digest of its own, which opens no segment.
fn unbound(json: &mut Value) {
    let mut digest = json["digests"]["0"].clone();
    (digest["keyslots"], digest["segments"]) = (json!(["1"]), json!([]));
    json["digests"]["1"] = digest;
    json["digests"]["0"]["keyslots"] = json!(["0"]);
}

#[test]
fn the_last_key_of_the_data_is_not_erased_beside_slots_that_do_not_open_it() {
    let limits = Limits::default();
    let unknown_type = |json: &mut Value| json["keyslots"]["1"]["type"] = json!("something-new");
    let unknown_kdf = |json: &mut Value| json["keyslots"]["1"]["kdf"]["type"] = json!("scrypt");
    let changes = [
        ("unbound", unbound as fn(&mut Value)),
        ("type", unknown_type),
        ("kdf", unknown_kdf),
    ];
    for (name, change) in changes {
        let storage = changed(change);
        let image = metadata(storage.clone(), &limits).unwrap();
        let (slots, env) = (image.key_slots().unwrap(), key_env(&limits));
        let listed: Vec<_> = slots.list().unwrap().iter().map(|s| (s.active, s.opens_data)).collect();
        assert_eq!(listed, [(true, true), (true, false)], "{name}");
        for last in [EraseKeys::Slot(0), EraseKeys::Matching(b"letmein")] {
            let refused = slots.erase(last, false, &env).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{name}: {refused}");
        }
        assert_eq!(image.check(Repair::No, &Control::default()).unwrap().corruptions, 0);
        // The slot is in use all the same.
        assert_eq!(slots.add(b"letmein", &new(b"third"), &env).unwrap(), 2, "{name}");
        assert_eq!(slots.erase(EraseKeys::Slot(0), false, &env).unwrap(), [0], "{name}");
        assert_eq!(slots.erase(EraseKeys::Slot(1), false, &env).unwrap(), [1], "{name}");
        assert!(open_on(storage.clone(), b"third").is_ok(), "{name}");
        slots.erase(EraseKeys::Slot(2), true, &env).unwrap();
        assert_eq!(image.check(Repair::No, &Control::default()).unwrap().corruptions, 1);
    }
}

#[test]
fn a_digest_of_an_unknown_type_that_opens_nothing_is_kept() {
    let stranger = json!({"type": "something-new", "keyslots": [], "segments": [], "share": 0.5});
    let storage = changed(|json| json["digests"]["7"] = stranger.clone());
    let limits = Limits::default();
    let mut header = LuksHeader::read(storage.clone(), &KeyWork::within(&limits)).unwrap();
    header.add_key(b"other", &new(b"third"), &key_env(&limits)).unwrap();
    assert_eq!(json_of(&storage.contents())["digests"]["7"], stranger);
    assert!(open_on(storage, b"third").is_ok());
}

fn one_key(version: &str) -> Vec<u8> {
    let memory = in_memory(version, 1 << 16);
    memory.contents()
}

fn in_place(slot: u32, passphrase: &[u8]) -> NewKey<'_> {
    NewKey {
        slot: Some(slot),
        overwrite: true,
        ..new(passphrase)
    }
}

#[test]
fn a_forced_key_that_is_cancelled_while_it_is_derived_changes_nothing() {
    let limits = Limits::default();
    for version in ["1", "2"] {
        let before = one_key(version);
        for slot in [0, 1] {
            let storage = Arc::new(MemoryStorage::new("cancelled", before.clone()));
            let mut header = LuksHeader::read(storage.clone(), &KeyWork::within(&limits)).unwrap();
            header.add_key(b"first", &new(b"second"), &key_env(&limits)).unwrap();
            let two = storage.contents();
            // The salt of the new key is the first random number after the volume was opened.
            let begun = AtomicBool::new(false);
            let cancelled = || begun.load(Ordering::SeqCst);
            let env = KeyEnv {
                work: KeyWork {
                    cancelled: &cancelled,
                    ..KeyWork::within(&limits)
                },
                random: &|buf| {
                    begun.store(true, Ordering::SeqCst);
                    random(buf);
                },
            };
            let error = header.add_key(b"first", &in_place(slot, b"third"), &env).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "LUKS{version} slot {slot}");
            assert!(storage.contents() == two, "LUKS{version} slot {slot}");
        }
    }
}

#[test]
fn a_forced_key_that_is_being_written_is_not_cancelled_half_way() {
    let limits = Limits::default();
    for version in ["1", "2"] {
        let storage = Arc::new(FaultyStorage::new(one_key(version)));
        let cancelled = || storage.changes() > 0;
        let env = KeyEnv {
            work: KeyWork {
                cancelled: &cancelled,
                ..KeyWork::within(&limits)
            },
            random: &random,
        };
        let mut header = LuksHeader::read(storage.clone(), &KeyWork::within(&limits)).unwrap();
        header.add_key(b"first", &in_place(0, b"third"), &env).unwrap();
        assert_eq!(header.active_slots(), [0], "LUKS{version}");
        let left = || Arc::new(MemoryStorage::new("left", storage.contents()));
        assert!(
            open_on(left(), b"third").is_ok() && open_on(left(), b"first").is_err(),
            "LUKS{version}"
        );
    }
}

#[test]
fn a_full_disk_leaves_the_key_that_was_to_be_replaced() {
    use vdisk_engine::storage::Fault;
    let limits = Limits::default();
    for version in ["1", "2"] {
        let storage = Arc::new(FaultyStorage::new(one_key(version)));
        let mut header = LuksHeader::read(storage.clone(), &KeyWork::within(&limits)).unwrap();
        storage.plan(0, Fault::FailOnce(std::io::ErrorKind::StorageFull));
        assert!(
            header
                .add_key(b"first", &in_place(0, b"third"), &key_env(&limits))
                .is_err()
        );
        assert_eq!(header.active_slots(), [0], "LUKS{version}");
        let left = Arc::new(MemoryStorage::new("left", storage.contents()));
        assert!(open_on(left, b"first").is_ok(), "LUKS{version}");
    }
}

#[test]
fn the_slots_of_a_header_end_at_31() {
    let moved = |to: &'static str| {
        changed(move |json| {
            let slot = json["keyslots"].as_object_mut().unwrap().remove("1").unwrap();
            json["keyslots"][to] = slot;
            json["digests"]["0"]["keyslots"] = json!(["0", to]);
        })
    };
    assert!(open_on(moved("31"), b"other").is_ok());
    let refused = open_on(moved("32"), b"other").err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert!(refused.to_string().contains("keyslot 32"), "{refused}");
}

/// Each slot within its limits, all of them together not.
#[test]
fn a_passphrase_is_not_tried_on_more_than_the_limits_allow_together() {
    let storage = in_memory("2", 1 << 16);
    let limits = Limits {
        kdf_iterations: 1000,
        kdf_derivations: 4,
        ..Limits::default()
    };
    let work = KeyWork::within(&limits);
    let mut header = LuksHeader::read(storage.clone(), &work).unwrap();
    header.add_key(b"first", &new(b"second"), &key_env(&limits)).unwrap();
    header.add_key(b"first", &new(b"third"), &key_env(&limits)).unwrap();
    // A slot and its digest are two derivations: what stands in the first two slots is found.
    assert_eq!(header.test_key(b"second", None, &work).unwrap(), 1);
    for passphrase in [b"third".as_slice(), b"wrong"] {
        let refused = header.test_key(passphrase, None, &work).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::LimitExceeded, "{refused}");
    }
    assert_eq!(header.test_key(b"third", Some(2), &work).unwrap(), 2);
}

/// As `cryptsetup config --priority ignore` leaves it: cryptsetup and this program try such a slot when it is asked for by number alone.
#[test]
fn a_slot_that_is_to_be_ignored_does_not_count_as_another_key() {
    let limits = Limits::default();
    let storage = changed(|json| json["keyslots"]["1"]["priority"] = json!(0));
    let image = metadata(storage.clone(), &limits).unwrap();
    let (slots, env) = (image.key_slots().unwrap(), key_env(&limits));
    assert_eq!(
        open_on(storage.clone(), b"other").err().unwrap().kind(),
        ErrorKind::WrongKey
    );
    for last in [EraseKeys::Slot(0), EraseKeys::Matching(b"letmein")] {
        let refused = slots.erase(last, false, &env).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
    assert!(open_on(storage, b"letmein").is_ok());
    // Its passphrase is known to somebody, and can be taken away.
    assert_eq!(slots.test(b"other", Some(1), &env.work).unwrap(), 1);
    assert_eq!(slots.erase(EraseKeys::Matching(b"other"), false, &env).unwrap(), [1]);
}

/// As `cryptsetup luksFormat --luks2-keyslots-size` leaves it: one key fills the area for keys.
#[test]
fn a_new_key_does_not_take_the_place_of_the_only_one() {
    let limits = Limits::default();
    let good = valid();
    let mut json = json_of(&good);
    let size = json["keyslots"]["0"]["area"]["size"].clone();
    json["config"]["keyslots_size"] = size;
    let full = with_text(&good, json.to_string().as_bytes());
    let storage = Arc::new(MemoryStorage::new("full", full.clone()));
    let mut header = LuksHeader::read(storage.clone(), &KeyWork::within(&limits)).unwrap();
    let refused = header.add_key(b"letmein", &in_place(0, b"other"), &key_env(&limits));
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LimitExceeded, "{refused}");
    assert!(refused.to_string().contains("may be the only one"), "{refused}");
    let refused = header.change_key(b"letmein", &new(b"other"), &key_env(&limits));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::LimitExceeded);
    assert!(storage.contents() == full);
}
