//! Key slots: ours, and what the peers make of them.

use std::path::Path;

use e2e::tools::{arg, have, ok, run};
use tempfile::tempdir;
use vdisk_engine::crypto::luks::{EraseKeys, KdfCost, NewKey};
use vdisk_engine::options::Options;
use vdisk_engine::{ErrorKind, Image, Limits};

use super::support::{create, file, key_env, metadata, open};

fn new(passphrase: &str) -> NewKey<'_> {
    NewKey {
        passphrase: passphrase.as_bytes(),
        slot: None,
        cost: KdfCost::Iterations(1000),
        overwrite: false,
    }
}

fn opens(path: &Path, passphrase: &str) -> bool {
    match open(path, passphrase) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WrongKey, "{error}");
            false
        }
    }
}

fn volume(path: &Path) -> Box<dyn Image> {
    create(path, 1 << 20, Options::new(), "first").unwrap();
    metadata(file(path), &Limits::default()).unwrap()
}

#[test]
fn added_changed_and_erased_keys_open_or_do_not() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("k.luks");
    let image = volume(&path);
    let (limits, slots) = (Limits::default(), image.key_slots().unwrap());
    let env = key_env(&limits);
    assert_eq!(slots.add(b"first", &new("second"), &env).unwrap(), 1);
    let at_5 = NewKey {
        slot: Some(5),
        ..new("fifth")
    };
    assert_eq!(slots.add(b"second", &at_5, &env).unwrap(), 5);
    assert!(opens(&path, "first") && opens(&path, "second") && opens(&path, "fifth"));
    assert_eq!(slots.change(b"first", &new("third"), &env).unwrap(), 2);
    assert!(!opens(&path, "first") && opens(&path, "third"));
    assert_eq!(slots.erase(EraseKeys::Matching(b"second"), false, &env).unwrap(), [1]);
    assert_eq!(slots.erase(EraseKeys::Slot(5), false, &env).unwrap(), [5]);
    assert!(!opens(&path, "second") && !opens(&path, "fifth") && opens(&path, "third"));
    let active: Vec<_> = slots
        .list()
        .unwrap()
        .iter()
        .filter(|s| s.active)
        .map(|s| s.number)
        .collect();
    assert_eq!(active, [2]);
}

#[test]
fn what_would_lose_a_key_by_mistake_is_refused() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("k.luks");
    let image = volume(&path);
    let (limits, slots) = (Limits::default(), image.key_slots().unwrap());
    let env = key_env(&limits);
    let kind = |result: vdisk_engine::Result<u32>| result.unwrap_err().kind();
    assert_eq!(kind(slots.add(b"wrong", &new("x"), &env)), ErrorKind::WrongKey);
    assert_eq!(
        kind(slots.add(
            b"first",
            &NewKey {
                slot: Some(0),
                ..new("x")
            },
            &env
        )),
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        kind(slots.add(
            b"first",
            &NewKey {
                slot: Some(8),
                ..new("x")
            },
            &env
        )),
        ErrorKind::InvalidArgument
    );
    let erase = |which| slots.erase(which, false, &env).unwrap_err().kind();
    assert_eq!(erase(EraseKeys::Slot(0)), ErrorKind::InvalidArgument);
    assert_eq!(erase(EraseKeys::Slot(1)), ErrorKind::InvalidArgument);
    assert_eq!(erase(EraseKeys::Matching(b"first")), ErrorKind::InvalidArgument);
    assert_eq!(erase(EraseKeys::Matching(b"wrong")), ErrorKind::WrongKey);
    assert_eq!(erase(EraseKeys::SlotMatching(0, b"wrong")), ErrorKind::WrongKey);
    assert!(opens(&path, "first"));
    slots.erase(EraseKeys::Slot(0), true, &env).unwrap();
    assert!(!opens(&path, "first"));
    assert_eq!(
        image
            .check(vdisk_engine::image::Repair::No, &vdisk_engine::Control::default())
            .unwrap()
            .corruptions,
        1
    );
}

#[test]
fn eight_keys_fill_the_header_and_the_ninth_is_refused() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("k.luks");
    let image = volume(&path);
    let (limits, slots) = (Limits::default(), image.key_slots().unwrap());
    let env = key_env(&limits);
    for number in 1..8 {
        slots.add(b"first", &new(&format!("key {number}")), &env).unwrap();
    }
    assert_eq!(
        slots.add(b"first", &new("ninth"), &env).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    assert_eq!(slots.change(b"key 3", &new("other"), &env).unwrap(), 3);
    assert!(!opens(&path, "key 3") && opens(&path, "other") && opens(&path, "key 7"));
}

#[test]
fn the_peers_open_our_slots_and_we_theirs() {
    if !have(&["qemu-img", "cryptsetup"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let path = dir.path().join("k.luks");
    let image = volume(&path);
    let (limits, slots) = (Limits::default(), image.key_slots().unwrap());
    slots.add(b"first", &new("second"), &key_env(&limits)).unwrap();
    let key = dir.path().join("key");
    for (passphrase, code) in [("first", 0), ("second", 0), ("third", 2)] {
        std::fs::write(&key, passphrase).unwrap();
        let out = run(
            "cryptsetup",
            &["open", "--test-passphrase", "--key-file", arg(&key), arg(&path)],
        );
        assert_eq!(out.status.code(), Some(code), "{passphrase}");
    }
    let amend = |options: &str| {
        let opts = format!("driver=luks,key-secret=s,file.filename={}", arg(&path));
        let objects = [
            "--object",
            "secret,id=s,data=second",
            "--object",
            "secret,id=n,data=third",
        ];
        ok(
            "qemu-img",
            &[&["amend"], &objects[..], &["-o", options, "--image-opts", &opts]].concat(),
        );
    };
    amend("state=active,new-secret=n,iter-time=10,keyslot=6");
    assert!(opens(&path, "third"));
    amend("state=inactive,keyslot=0");
    assert!(!opens(&path, "first") && opens(&path, "second"));
}

#[test]
fn amend_takes_qemus_options() {
    use vdisk_engine::crypto::{Keyring, SecretFormat, SecretText};
    let dir = tempdir().unwrap();
    let path = dir.path().join("k.luks");
    let image = volume(&path);
    let limits = Limits::default();
    let mut secrets = Keyring::new();
    for id in ["first", "second", "wrong"] {
        let text = SecretText {
            data: id.as_bytes(),
            format: SecretFormat::Raw,
            keyid: None,
            iv: None,
        };
        secrets.add(id, &text).unwrap();
    }
    let amend = |options: &str, force| {
        let mut set = Options::new();
        options
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .for_each(|(name, value)| set.set(name, value));
        let env = key_env(&limits);
        vdisk_engine::ops::keys::change_keys(image.as_ref(), &set, Some("first"), force, &secrets, &env)
    };
    assert_eq!(
        amend("state=active,new-secret=second,iterations=1000,keyslot=4", false).unwrap(),
        [4]
    );
    assert!(opens(&path, "second"));
    for refused in [
        "new-secret=second",
        "state=active",
        "state=active,new-secret=second,old-secret=first",
        "state=active,new-secret=second,iterations=1000,keyslot=4",
        "state=active,new-secret=second,iterations=1000,keyslot=9",
        "state=inactive",
        "state=inactive,keyslot=1",
        "state=inactive,new-secret=first,keyslot=4",
        "state=inactive,keyslot=4,colour=red",
    ] {
        assert_eq!(
            amend(refused, false).unwrap_err().kind(),
            ErrorKind::InvalidArgument,
            "{refused}"
        );
    }
    assert_eq!(
        amend("state=inactive,old-secret=wrong", false).unwrap_err().kind(),
        ErrorKind::WrongKey
    );
    assert_eq!(
        amend("state=inactive,keyslot=4,old-secret=first", false)
            .unwrap_err()
            .kind(),
        ErrorKind::WrongKey
    );
    assert_eq!(amend("state=inactive,old-secret=first", false).unwrap(), [0]);
    assert_eq!(amend("state=inactive,keyslot=4", true).unwrap(), [4]);
}
