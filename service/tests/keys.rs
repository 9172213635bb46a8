//! Encrypting, decrypting, changing keys, and rotating the master key.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use common::{Lab, OVERLAY, code, json, quick_config, sample, tool};
use serde_json::{Value, json};
use vdisk_service::config::MasterKey;
use vdisk_service::model::{ImageId, Job, JobState, SecretId};
use vdisk_service::request::Call;
use vdisk_service::{ErrorCode, Result, Service};

const NONE: Call = Call { idempotency_key: None };

async fn secret(lab: &Lab, value: &str) -> SecretId {
    let request = json!({"name": format!("s-{value}"), "value": value});
    lab.service.create_secret(json(request), &NONE).await.unwrap().id
}

async fn encrypt(lab: &Lab, source: ImageId, request: Value) -> Result<Job> {
    lab.service.encrypt_image(source, json(request), &NONE).await
}

async fn rekey(lab: &Lab, image: ImageId, request: Value) -> Result<Job> {
    lab.service.rekey_image(image, json(request), &NONE).await
}

/// A LUKS image and an encrypted qcow2 image of the same bytes, with cheap keys.
async fn both_forms(lab: &Lab, bytes: &[u8], key: SecretId) -> [(ImageId, &'static str); 2] {
    let source = lab.upload("source", Some("raw"), bytes).await.unwrap().id;
    let luks = json!({"name": "luks", "secret": key, "options": {"iter-time": 10}, "verify": true});
    let qcow2 = json!({"name": "qcow2", "format": "qcow2", "secret": key, "verify": true,
        "options": {"encrypt.iter-time": 10}});
    let mut made = Vec::new();
    for request in [luks, qcow2] {
        let job = encrypt(lab, source, request).await.unwrap();
        made.push(lab.succeed(job).await.result_image_id().unwrap());
    }
    [(made[0], "key-secret"), (made[1], "encrypt.key-secret")]
}

async fn named(lab: &Lab, image: ImageId, role: &str) -> SecretId {
    lab.service.image(image).await.unwrap().secrets[role]
}

/// Numbers of the slots that hold a key, as `info` lists them.
async fn active_slots(lab: &Lab, image: ImageId) -> Vec<usize> {
    let info = lab.service.image_info(image).await.unwrap();
    let data = &info["format-specific"]["data"];
    let slots = data.get("slots").unwrap_or(&data["encrypt"]["slots"]);
    let slots = slots.as_array().unwrap().iter().enumerate();
    slots
        .filter(|(_, slot)| slot["active"] == true)
        .map(|(number, _)| number)
        .collect()
}

/// Whether a secret opens the image; the image names its own again afterwards.
async fn opens(lab: &Lab, image: ImageId, role: &str, key: SecretId, bytes: &[u8]) -> bool {
    let own = named(lab, image, role).await;
    let name = async |key: SecretId| {
        let request = json(json!({"secrets": {role: key}}));
        lab.service.update_image(image, request).await.unwrap();
    };
    name(key).await;
    let read = lab.service.read_data(image, None).await;
    let opened = match read {
        Ok(download) => common::collect(download.body).await == bytes,
        Err(error) => {
            assert_eq!(error.code, ErrorCode::WrongKey, "{error}");
            false
        }
    };
    name(own).await;
    opened
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_encrypted_and_decrypted_is_what_it_was() {
    let lab = Lab::new().await;
    let bytes = sample(3 << 20, 11);
    let (key, other) = (secret(&lab, "one").await, secret(&lab, "two").await);
    for (id, role) in both_forms(&lab, &bytes, key).await {
        let image = lab.service.image(id).await.unwrap();
        assert!(
            image.encrypted && image.secrets == [(role.to_owned(), key)].into(),
            "{image:?}"
        );
        assert!(lab.data(id).await == bytes);
        let again = json!({"name": format!("again-{role}"), "secret": other, "options": {"iter-time": 10}});
        let again = encrypt(&lab, id, again).await.unwrap();
        let again = lab.succeed(again).await.result_image_id().unwrap();
        assert_eq!(named(&lab, again, "key-secret").await, other);
        let request = json!({"name": format!("plain-{role}"), "verify": true});
        let job = lab.service.decrypt_image(again, json(request), &NONE).await.unwrap();
        let done = lab.succeed(job).await;
        assert!(done.result.as_ref().unwrap()["digest"].is_string());
        let plain = lab.service.image(done.result_image_id().unwrap()).await.unwrap();
        assert!(
            plain.format == "raw" && !plain.encrypted && plain.secrets.is_empty(),
            "{plain:?}"
        );
        assert!(lab.data(plain.id).await == bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_copy_keeps_the_format_and_takes_a_secret_that_the_image_does_not_name() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 12);
    let key = secret(&lab, "one").await;
    let [_, (qcow2, _)] = both_forms(&lab, &bytes, key).await;
    lab.service
        .update_image(qcow2, json(json!({"secrets": {}})))
        .await
        .unwrap();
    let request = json!({"name": "shut"});
    let shut = lab.service.decrypt_image(qcow2, json(request), &NONE).await.unwrap();
    assert_eq!(lab.fail(shut).await, ErrorCode::SecretRequired);
    let request = json!({"name": "open", "secret": key, "compress": true, "verify": true});
    let job = lab.service.decrypt_image(qcow2, json(request), &NONE).await.unwrap();
    let plain = lab.succeed(job).await.result_image_id().unwrap();
    let plain = lab.service.image(plain).await.unwrap();
    assert!(
        plain.format == "qcow2" && !plain.encrypted && plain.secrets.is_empty(),
        "{plain:?}"
    );
    assert!(lab.data(plain.id).await == bytes);
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_not_encrypt_or_not_decrypt_is_refused() {
    let lab = Lab::new().await;
    let key = secret(&lab, "one").await;
    let raw = lab.upload("raw", Some("raw"), &sample(1 << 20, 13)).await.unwrap().id;
    for (request, expected) in [
        (
            json!({"name": "x", "format": "raw", "secret": key}),
            ErrorCode::Unsupported,
        ),
        (
            json!({"name": "x", "format": "qcow", "secret": key}),
            ErrorCode::Unsupported,
        ),
        (
            json!({"name": "x", "format": "none", "secret": key}),
            ErrorCode::Unsupported,
        ),
        (json!({"name": "x", "secret": raw}), ErrorCode::NotFound),
        (
            json!({"name": "x", "format": "qcow2", "secret": key, "options": {"encrypt.format": "aes"}}),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({"name": "x", "secret": key, "options": {"key-secret": "other"}}),
            ErrorCode::InvalidArgument,
        ),
    ] {
        assert_eq!(code(encrypt(&lab, raw, request.clone()).await), expected, "{request}");
    }
    let decrypt = async |id: ImageId, request: Value| lab.service.decrypt_image(id, json(request), &NONE).await;
    assert_eq!(
        code(decrypt(raw, json!({"name": "x"})).await),
        ErrorCode::InvalidArgument
    );
    let made = json!({"name": "closed", "secret": key, "options": {"iter-time": 10}});
    let made = encrypt(&lab, raw, made).await.unwrap();
    let closed = lab.succeed(made).await.result_image_id().unwrap();
    for request in [
        json!({"name": "x", "format": "luks"}),
        json!({"name": "x", "format": "qcow2", "options": {"encrypt.format": "luks"}}),
    ] {
        assert_eq!(
            code(decrypt(closed, request.clone()).await),
            ErrorCode::InvalidArgument,
            "{request}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_with_the_same_key_is_one_job() {
    let lab = Lab::new().await;
    let key = secret(&lab, "one").await;
    let [(luks, _), _] = both_forms(&lab, &sample(1 << 20, 14), key).await;
    let call = Call {
        idempotency_key: Some("once".to_owned()),
    };
    let new = secret(&lab, "two").await;
    let request = || json(json!({"change": "add", "new_secret": new, "iterations": 1000}));
    let first = lab.service.rekey_image(luks, request(), &call).await.unwrap();
    let again = lab.service.rekey_image(luks, request(), &call).await.unwrap();
    assert_eq!(first.id, again.id);
    lab.succeed(first).await;
    let other = json(json!({"change": "erase", "old_secret": new}));
    assert_eq!(
        code(lab.service.rekey_image(luks, other, &call).await),
        ErrorCode::IdempotencyConflict
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_added_changed_and_erased_and_the_image_names_one_that_opens_it() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 15);
    let (one, two, three) = (
        secret(&lab, "one").await,
        secret(&lab, "two").await,
        secret(&lab, "three").await,
    );
    for (image, role) in both_forms(&lab, &bytes, one).await {
        let run = async |request: Value| {
            let job = rekey(&lab, image, request).await.unwrap();
            lab.succeed(job).await.result.unwrap()
        };
        let before = lab.service.image(image).await.unwrap().generation;
        let added = run(json!({"change": "add", "new_secret": two, "iterations": 1000, "slot": 5})).await;
        assert_eq!((&added["slot"], &added["active_slots"]), (&json!(5), &json!([0, 5])));
        assert_eq!(active_slots(&lab, image).await, [0, 5]);
        let same = run(json!({"change": "add", "new_secret": two, "iterations": 1000})).await;
        assert_eq!(
            (&same["slot"], &same["active_slots"]),
            (&json!(5), &json!([0, 5])),
            "it is there already"
        );
        assert_eq!(named(&lab, image, role).await, one);
        let changed = run(json!({"change": "change", "new_secret": three, "iter_time": 10})).await;
        assert_eq!((&changed["slot"], &changed["erased"]), (&json!(1), &json!([0])));
        assert_eq!(named(&lab, image, role).await, three);
        assert!(lab.data(image).await == bytes);
        assert!(!opens(&lab, image, role, one, &bytes).await && opens(&lab, image, role, two, &bytes).await);
        let erased = run(json!({"change": "erase", "old_secret": two})).await;
        assert_eq!((&erased["erased"], &erased["active_slots"]), (&json!([5]), &json!([1])));
        assert!(!opens(&lab, image, role, two, &bytes).await && opens(&lab, image, role, three, &bytes).await);
        assert_eq!(
            lab.service.image(image).await.unwrap().generation,
            before,
            "the guest sees the same"
        );
    }
    let check = async |id| lab.service.delete_secret(id).await;
    check(one).await.unwrap();
    assert_eq!(code(check(three).await), ErrorCode::SecretInUse);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_lost_by_mistake() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 16);
    let (one, two) = (secret(&lab, "one").await, secret(&lab, "two").await);
    let [(image, role), _] = both_forms(&lab, &bytes, one).await;
    let raw = lab.upload("raw", Some("raw"), &bytes).await.unwrap().id;
    for (id, request, expected) in [
        (raw, json!({"change": "erase", "slot": 0}), ErrorCode::Unsupported),
        (image, json!({"change": "add"}), ErrorCode::InvalidArgument),
        (image, json!({"change": "erase"}), ErrorCode::InvalidArgument),
        (
            image,
            json!({"change": "erase", "slot": 0, "new_secret": two}),
            ErrorCode::InvalidArgument,
        ),
        (
            image,
            json!({"change": "erase", "slot": 0, "iter_time": 5}),
            ErrorCode::InvalidArgument,
        ),
        (
            image,
            json!({"change": "add", "new_secret": two, "iter_time": 0}),
            ErrorCode::InvalidArgument,
        ),
        (
            image,
            json!({"change": "add", "new_secret": two, "iter_time": 9, "iterations": 9}),
            ErrorCode::InvalidArgument,
        ),
        (
            image,
            json!({"change": "change", "new_secret": two, "old_secret": two}),
            ErrorCode::InvalidArgument,
        ),
        (
            image,
            json!({"change": "change", "new_secret": one, "old_secret": one}),
            ErrorCode::InvalidArgument,
        ),
        (image, json!({"change": "add", "new_secret": raw}), ErrorCode::NotFound),
    ] {
        assert_eq!(code(rekey(&lab, id, request.clone()).await), expected, "{request}");
    }
    let fails = async |request: Value| {
        let job = rekey(&lab, image, request).await.unwrap();
        lab.fail(job).await
    };
    assert_eq!(
        fails(json!({"change": "erase", "slot": 0})).await,
        ErrorCode::InvalidArgument,
        "the last key"
    );
    assert_eq!(
        fails(json!({"change": "erase", "old_secret": one})).await,
        ErrorCode::InvalidArgument,
        "the last key"
    );
    assert_eq!(
        fails(json!({"change": "erase", "slot": 3})).await,
        ErrorCode::InvalidArgument,
        "an empty slot"
    );
    assert_eq!(
        fails(json!({"change": "erase", "old_secret": two})).await,
        ErrorCode::WrongKey
    );
    assert_eq!(
        fails(json!({"change": "add", "new_secret": one, "old_secret": two, "slot": 2})).await,
        ErrorCode::WrongKey
    );
    let add = rekey(
        &lab,
        image,
        json!({"change": "add", "new_secret": two, "iterations": 1000}),
    )
    .await
    .unwrap();
    lab.succeed(add).await;
    assert_eq!(
        fails(json!({"change": "erase", "slot": 0})).await,
        ErrorCode::InvalidArgument,
        "the one that the image names"
    );
    assert!(lab.data(image).await == bytes && active_slots(&lab, image).await == [0, 1]);
    let forced = rekey(&lab, image, json!({"change": "erase", "slot": 0, "force": true}))
        .await
        .unwrap();
    lab.succeed(forced).await;
    assert!(opens(&lab, image, role, two, &bytes).await);
    lab.service
        .update_image(image, json(json!({"protected": true})))
        .await
        .unwrap();
    assert_eq!(
        code(rekey(&lab, image, json!({"change": "erase", "slot": 1})).await),
        ErrorCode::ImageProtected
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_half_done_is_ended() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 17);
    let (one, two) = (secret(&lab, "one").await, secret(&lab, "two").await);
    for (image, role) in both_forms(&lab, &bytes, one).await {
        // As a change leaves it that dies when the new key is stable.
        let add = rekey(
            &lab,
            image,
            json!({"change": "add", "new_secret": two, "iterations": 1000}),
        )
        .await
        .unwrap();
        lab.succeed(add).await;
        let change = rekey(&lab, image, json!({"change": "change", "new_secret": two}))
            .await
            .unwrap();
        let result = lab.succeed(change).await.result.unwrap();
        assert_eq!((&result["slot"], &result["erased"]), (&json!(1), &json!([0])));
        assert_eq!(
            (named(&lab, image, role).await, active_slots(&lab, image).await),
            (two, vec![1])
        );
        assert!(lab.data(image).await == bytes);
    }
}

/// States of the key slots of a LUKS1 file.
fn luks1_slots(lab: &Lab, image: ImageId) -> Vec<bool> {
    let file = lab
        .files()
        .into_iter()
        .find(|name| name.starts_with(&image.to_string()));
    let bytes = std::fs::read(lab.pool().join(file.unwrap())).unwrap();
    (0..8)
        .map(|slot| bytes[208 + 48 * slot..].starts_with(&[0x00, 0xac, 0x71, 0xf3]))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_cancelled_takes_its_new_key_back_and_keeps_its_secrets_until_then() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 23);
    let (one, two) = (secret(&lab, "one").await, secret(&lab, "two").await);
    let [(image, role), _] = both_forms(&lab, &bytes, one).await;
    // Enough to be cancelled in the proof of the new key, which comes when it is stored.
    let request = json!({"change": "change", "new_secret": two, "iterations": 400_000});
    let job = rekey(&lab, image, request).await.unwrap();
    lab.until_running(&job).await;
    assert_eq!(code(lab.service.delete_secret(two).await), ErrorCode::SecretInUse);
    for _ in 0..20_000 {
        if luks1_slots(&lab, image)[1] || lab.service.job(job.id).await.unwrap().is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    lab.service.cancel_job(job.id, &NONE).await.unwrap();
    let ended = lab.finish(job).await;
    assert_eq!(ended.state, JobState::Cancelled, "{ended:?}");
    assert_eq!(
        luks1_slots(&lab, image),
        [true, false, false, false, false, false, false, false]
    );
    assert_eq!(named(&lab, image, role).await, one);
    assert!(lab.data(image).await == bytes);
    lab.service.delete_secret(two).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_does_not_open_the_data_is_no_key() {
    if tool("cryptsetup").is_none() {
        return;
    }
    let lab = Lab::new().await;
    let file = lab.dir.path().join("unbound.luks");
    let (first, second) = (lab.dir.path().join("first"), lab.dir.path().join("second"));
    std::fs::write(&file, vec![0; 17 << 20]).unwrap();
    std::fs::write(&first, "one").unwrap();
    std::fs::write(&second, "two").unwrap();
    let cryptsetup = |args: &[&std::ffi::OsStr]| {
        let cheap = [
            "-q",
            "--disable-locks",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
        ];
        let done = tool("cryptsetup").unwrap().args(cheap).args(args).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    cryptsetup(&[
        "luksFormat".as_ref(),
        "--type=luks2".as_ref(),
        file.as_ref(),
        first.as_ref(),
    ]);
    let unbound = [
        "luksAddKey",
        "--unbound",
        "--key-size=512",
        "--key-slot=1",
        "--key-file",
    ]
    .map(std::ffi::OsStr::new);
    cryptsetup(&[&unbound[..], &[first.as_ref(), file.as_ref(), second.as_ref()]].concat());
    let image = lab
        .upload("unbound", Some("luks"), &std::fs::read(&file).unwrap())
        .await
        .unwrap()
        .id;
    let request = json!({"change": "erase", "slot": 0});
    let job = rekey(&lab, image, request).await.unwrap();
    assert_eq!(lab.fail(job).await, ErrorCode::InvalidArgument, "the last key");
    let erased = rekey(&lab, image, json!({"change": "erase", "slot": 1})).await.unwrap();
    let result = lab.succeed(erased).await.result.unwrap();
    assert_eq!((&result["erased"], &result["active_slots"]), (&json!([1]), &json!([0])));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_base_changes_its_keys_below_its_overlays() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 18);
    let (one, two) = (secret(&lab, "one").await, secret(&lab, "two").await);
    let [_, (base, role)] = both_forms(&lab, &bytes, one).await;
    let overlay = lab.overlay("overlay", base).await.id;
    let change = rekey(
        &lab,
        base,
        json!({"change": "change", "new_secret": two, "iterations": 1000}),
    )
    .await
    .unwrap();
    lab.succeed(change).await;
    assert_eq!(named(&lab, base, role).await, two);
    assert!(lab.data(overlay).await == bytes);
    assert_eq!(
        code(rekey(&lab, overlay, json!({"change": "erase", "slot": 0})).await),
        ErrorCode::Unsupported,
        "the overlay has no keys"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_peer_opens_what_was_encrypted_and_changed_here() {
    if tool("qemu-img").is_none() {
        return;
    }
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 19);
    let (one, two) = (secret(&lab, "one").await, secret(&lab, "two").await);
    let source = lab.dir.path().join("source.raw");
    std::fs::write(&source, &bytes).unwrap();
    for ((image, _), (format, role)) in both_forms(&lab, &bytes, one)
        .await
        .into_iter()
        .zip([("luks", "key-secret"), ("qcow2", "encrypt.key-secret")])
    {
        let change = rekey(
            &lab,
            image,
            json!({"change": "change", "new_secret": two, "iterations": 1000}),
        )
        .await
        .unwrap();
        lab.succeed(change).await;
        let file = lab
            .files()
            .into_iter()
            .find(|name| name.starts_with(&image.to_string()))
            .unwrap();
        let file = lab.pool().join(file);
        for (passphrase, agrees) in [("two", true), ("one", false)] {
            let object = format!("secret,id=s,data={passphrase}");
            let target = format!("driver={format},file.filename={},{role}=s", file.display());
            let plain = format!("driver=raw,file.filename={}", source.display());
            let status = tool("qemu-img")
                .unwrap()
                .args(["compare", "--object", &object, "--image-opts", &plain, &target])
                .output()
                .unwrap();
            assert_eq!(status.status.success(), agrees, "{format} {passphrase}: {status:?}");
        }
    }
}

fn key(byte: u8) -> MasterKey {
    MasterKey([byte; 32].into())
}

/// The lab's service ends, and another starts with these master keys.
async fn restart(lab: Lab, current: Option<u8>, new: Option<u8>) -> Result<Lab> {
    let Lab { dir, service } = lab;
    service.shutdown(Duration::from_secs(5)).await;
    drop(service);
    let mut config = quick_config(dir.path());
    (config.master_key, config.new_master_key) = (current.map(key), new.map(key));
    Ok(Lab {
        service: Service::open(config).await?,
        dir,
    })
}

async fn rotated(lab: &Lab) -> Value {
    let job = lab.service.rotate_master_key(json(json!({})), &NONE).await.unwrap();
    lab.succeed(job).await.result.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_the_new_master_key_opens_everything_and_the_old_one_nothing() {
    let lab = Lab::with(|config| config.master_key = Some(key(1))).await;
    let bytes = sample(1 << 20, 20);
    let one = secret(&lab, "one").await;
    let [(luks, _), _] = both_forms(&lab, &bytes, one).await;
    let hook = json!({"url": "http://hooks.example/x", "secret": "4f1d8a0c9b7e6d5f"});
    lab.service.create_webhook(json(hook), &NONE).await.unwrap();
    let refused = lab.service.rotate_master_key(json(json!({})), &NONE).await;
    assert_eq!(code(refused), ErrorCode::Unsupported, "there is no new key");
    let lab = restart(lab, Some(1), Some(2)).await.unwrap();
    let before = secret(&lab, "before").await;
    let result = rotated(&lab).await;
    assert_eq!(result["resealed"], 3, "two secrets and a webhook's");
    secret(&lab, "after").await;
    assert!(lab.data(luks).await == bytes);
    let Lab { dir, service } = lab;
    let lab = restart(Lab { dir, service }, Some(2), None).await.unwrap();
    assert!(lab.data(luks).await == bytes);
    for id in [one, before] {
        // It opens, and then turns out to be no key of 32 bytes.
        let sealed = json!({"name": "probe", "value": "AAAA", "format": "base64", "keyid": id, "iv": "AAAA"});
        let probed = lab.service.create_secret(json(sealed), &NONE).await;
        assert_eq!(code(probed), ErrorCode::InvalidArgument);
    }
    let Lab { dir, service } = lab;
    service.shutdown(Duration::from_secs(5)).await;
    drop(service);
    let mut config = quick_config(dir.path());
    config.master_key = Some(key(1));
    let started = Service::open(config).await;
    assert_eq!(
        code(started.map(drop)),
        ErrorCode::Unavailable,
        "the old key opens nothing any more"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_keeps_its_own_master_key_makes_the_new_one() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 21);
    let one = secret(&lab, "one").await;
    let [(luks, _), _] = both_forms(&lab, &bytes, one).await;
    let file = lab.dir.path().join("master.key");
    let old = std::fs::read(&file).unwrap();
    let first = rotated(&lab).await;
    let new = std::fs::read(&file).unwrap();
    assert!(new != old && new.len() == 32 && !lab.dir.path().join("master.key.next").exists());
    assert!(lab.data(luks).await == bytes);
    let lab = lab.restart().await;
    assert!(lab.data(luks).await == bytes);
    assert_ne!(rotated(&lab).await["key_id"], first["key_id"]);
    std::fs::write(&file, old).unwrap();
    let Lab { dir, service } = lab;
    service.shutdown(Duration::from_secs(5)).await;
    drop(service);
    let started = Service::open(quick_config(dir.path())).await;
    assert_eq!(code(started.map(drop)), ErrorCode::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_of_an_encrypted_base_is_decrypted_through_it() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 22);
    let one = secret(&lab, "one").await;
    let [_, (base, _)] = both_forms(&lab, &bytes, one).await;
    let overlay = lab.overlay("overlay", base).await.id;
    let request = json!({"name": "plain", "format": OVERLAY, "verify": true});
    let job = lab.service.decrypt_image(overlay, json(request), &NONE).await.unwrap();
    let plain = lab.succeed(job).await.result_image_id().unwrap();
    assert!(lab.data(plain).await == bytes && !lab.service.image(plain).await.unwrap().encrypted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_master_key_is_not_replaced_while_something_is_sealed_under_it() {
    let lab = Lab::new().await;
    secret(&lab, "sesame").await;
    let file = lab.dir.path().join("master.key");
    let key = std::fs::read(&file).unwrap();
    lab.service.shutdown(Duration::from_secs(5)).await;
    let Lab { dir, service } = lab;
    drop(service);
    let start = async || Service::open(quick_config(dir.path())).await;
    std::fs::remove_file(&file).unwrap();
    assert_eq!(code(start().await), ErrorCode::Unavailable);
    assert!(!file.exists(), "another key is in its place");
    std::fs::write(&file, [7; 32]).unwrap();
    assert_eq!(code(start().await), ErrorCode::Unavailable);
    std::fs::write(&file, key).unwrap();
    start().await.unwrap().shutdown(Duration::from_secs(5)).await;
}
