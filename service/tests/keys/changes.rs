//! Keys that are added, changed and erased in place.

use std::time::Duration;

use serde_json::{Value, json};
use vdisk_service::ErrorCode;
use vdisk_service::model::{ImageId, JobState};

use crate::common::{Lab, code, json, sample, tool};
use crate::{NONE, active_slots, both_forms, named, opens, rekey, rekeyed, secret};

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
    rekeyed(
        &lab,
        image,
        json!({"change": "add", "new_secret": two, "iterations": 1000}),
    )
    .await;
    assert_eq!(
        fails(json!({"change": "erase", "slot": 0})).await,
        ErrorCode::InvalidArgument,
        "the one that the image names"
    );
    assert!(lab.data(image).await == bytes && active_slots(&lab, image).await == [0, 1]);
    rekeyed(&lab, image, json!({"change": "erase", "slot": 0, "force": true})).await;
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
        rekeyed(
            &lab,
            image,
            json!({"change": "add", "new_secret": two, "iterations": 1000}),
        )
        .await;
        let result = rekeyed(&lab, image, json!({"change": "change", "new_secret": two}))
            .await
            .result
            .unwrap();
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
    let result = rekeyed(&lab, image, json!({"change": "erase", "slot": 1}))
        .await
        .result
        .unwrap();
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

/// The file of an image.
fn file_of(lab: &Lab, image: ImageId) -> std::path::PathBuf {
    let mut files = lab.files().into_iter();
    let file = files.find(|name| name.starts_with(&image.to_string()));
    lab.pool().join(file.unwrap())
}

/// A LUKS1 image all of whose slots take seconds to try, and that no passphrase opens.
async fn costly(lab: &Lab) -> ImageId {
    let key = secret(lab, "one").await;
    let [(image, role), _] = both_forms(lab, &sample(1 << 16, 29), key).await;
    let mut bytes = std::fs::read(file_of(lab, image)).unwrap();
    for slot in 0..8 {
        // Active, with as many iterations as the limits allow.
        let state = [0x00ac_71f3_u32.to_be_bytes(), 12_000_000_u32.to_be_bytes()].concat();
        bytes[208 + 48 * slot..216 + 48 * slot].copy_from_slice(&state);
    }
    let image = lab.upload("costly", Some("luks"), &bytes).await.unwrap().id;
    let named = json(json!({"secrets": {role: key}}));
    lab.service.update_image(image, named).await.unwrap();
    image
}

/// Far less than the derivations take that nobody waits for any more.
const SOON: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_derives_a_key_hears_that_it_is_cancelled() {
    let lab = Lab::new().await;
    let image = costly(&lab).await;
    let request = json!({"name": "copy", "format": "raw"});
    let job = lab.service.convert_image(image, json(request), &NONE).await.unwrap();
    lab.until_running(&job).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let start = std::time::Instant::now();
    lab.service.cancel_job(job.id, &NONE).await.unwrap();
    let ended = lab.finish(job).await;
    assert_eq!(ended.state, JobState::Cancelled, "{ended:?}");
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[test]
fn a_reader_that_goes_away_ends_the_derivation_it_waited_for() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let lab = Lab::new().await;
        let image = costly(&lab).await;
        let read = lab.service.read_data(image, None);
        assert!(tokio::time::timeout(Duration::from_millis(300), read).await.is_err());
    });
    // It waits for its threads.
    let start = std::time::Instant::now();
    drop(runtime);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}
