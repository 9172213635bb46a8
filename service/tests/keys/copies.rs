//! Encrypted and plain copies.

use serde_json::{Value, json};
use vdisk_service::ErrorCode;
use vdisk_service::model::ImageId;
use vdisk_service::request::Call;

use crate::common::{Lab, OVERLAY, code, json, sample};
use crate::{NONE, both_forms, encrypt, named, secret};

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
