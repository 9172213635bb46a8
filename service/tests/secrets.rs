//! Secrets: the forms they come in, the images they open, and that they stay inside.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Lab, MIB, NONE, code, collect, json, sample, tool};
use serde_json::{Value, json};
use vdisk_service::ErrorCode;
use vdisk_service::model::{ImageId, SecretId};

const CANARY: &str = "canary-passphrase-7d1f";

async fn secret(lab: &Lab, request: Value) -> SecretId {
    lab.service.create_secret(json(request), &NONE).await.unwrap().id
}

async fn converted(lab: &Lab, source: ImageId, request: Value) -> ImageId {
    let job = lab.service.convert_image(source, json(request), &NONE).await.unwrap();
    lab.succeed(job).await.result_image_id().unwrap()
}

/// Two encrypted copies of the same bytes, one a format.
async fn encrypted(lab: &Lab, bytes: &[u8], key: SecretId) -> [ImageId; 2] {
    let source = lab.upload("source", Some("raw"), bytes).await.unwrap().id;
    let luks = json!({"name": "luks", "format": "luks", "verify": true,
        "options": {"iter-time": 10}, "secrets": {"encrypt.key-secret": key}});
    let qcow2 = json!({"name": "qcow2", "format": "qcow2", "verify": true,
        "options": {"encrypt.format": "luks", "encrypt.iter-time": 10}, "secrets": {"encrypt.key-secret": key}});
    [converted(lab, source, luks).await, converted(lab, source, qcow2).await]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_image_remembers_its_secret_and_keeps_it() {
    let lab = Lab::new().await;
    let bytes = sample(3 << 20, 5);
    let key = secret(&lab, json!({"name": "key", "value": CANARY})).await;
    let images = encrypted(&lab, &bytes, key).await;
    for (id, role) in images.into_iter().zip(["key-secret", "encrypt.key-secret"]) {
        let image = lab.service.image(id).await.unwrap();
        assert!(image.encrypted && image.secrets.get(role) == Some(&key), "{image:?}");
        assert!(lab.data(id).await == bytes);
        let plain = converted(&lab, id, json!({"name": format!("plain-{role}"), "format": "raw"})).await;
        assert!(lab.data(plain).await == bytes && !lab.service.image(plain).await.unwrap().encrypted);
    }
    let refused = lab.service.delete_secret(key).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.dependents),
        (ErrorCode::SecretInUse, images.to_vec())
    );
    for id in images {
        lab.service
            .update_image(id, json(json!({"secrets": {}})))
            .await
            .unwrap();
    }
    lab.service.delete_secret(key).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_secret_an_image_tells_about_itself_but_not_its_data() {
    let lab = Lab::new().await;
    let bytes = sample(2 << 20, 6);
    let key = secret(&lab, json!({"name": "key", "value": CANARY})).await;
    let wrong = secret(&lab, json!({"name": "wrong", "value": "another"})).await;
    for id in encrypted(&lab, &bytes, key).await {
        let attach = async |secrets: Value| {
            let request = json(json!({"secrets": secrets}));
            lab.service.update_image(id, request).await.unwrap();
        };
        let role = lab.service.image(id).await.unwrap().secrets.into_keys().next().unwrap();
        attach(json!({})).await;
        assert_eq!(lab.service.image_info(id).await.unwrap()["encrypted"], true);
        assert_eq!(code(lab.service.read_data(id, None).await), ErrorCode::SecretRequired);
        let compare = json(json!({"other": id}));
        let compare = lab.service.compare_images(id, compare, &NONE).await.unwrap();
        assert_eq!(lab.fail(compare).await, ErrorCode::SecretRequired);
        attach(json!({&role: wrong})).await;
        assert_eq!(code(lab.service.read_data(id, None).await), ErrorCode::WrongKey);
        attach(json!({&role: key})).await;
        assert!(lab.data(id).await == bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_reads_through_to_an_encrypted_base() {
    let lab = Lab::new().await;
    let bytes = sample(2 << 20, 7);
    let key = secret(&lab, json!({"name": "key", "value": CANARY})).await;
    let [_, base] = encrypted(&lab, &bytes, key).await;
    let overlay = lab.overlay("overlay", base).await.id;
    assert!(lab.data(overlay).await == bytes);
    let flatten = lab
        .service
        .flatten_image(overlay, json(json!({"verify": true})), &NONE)
        .await;
    lab.succeed(flatten.unwrap()).await;
    assert!(lab.data(overlay).await == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_come_raw_in_base64_or_encrypted_as_qemu_has_it() {
    let Some(mut openssl) = tool("openssl") else { return };
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 8);
    // Key and iv in hex for openssl, in base64 for us.
    let (key, iv) = ("01".repeat(32), "02".repeat(16));
    let run = openssl
        .args(["enc", "-aes-256-cbc", "-a", "-A", "-K", &key, "-iv", &iv])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut run = run.unwrap();
    std::io::Write::write_all(run.stdin.as_mut().unwrap(), CANARY.as_bytes()).unwrap();
    let sealed = String::from_utf8(run.wait_with_output().unwrap().stdout).unwrap();
    let master = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let master = secret(&lab, json!({"name": "master", "value": master, "format": "base64"})).await;
    let iv = "AgICAgICAgICAgICAgICAg==";
    let request = json!({"name": "sealed", "value": sealed, "format": "base64", "keyid": master, "iv": iv});
    let sealed = secret(&lab, request).await;
    let raw = secret(&lab, json!({"name": "raw", "value": CANARY})).await;
    let [luks, _] = encrypted(&lab, &bytes, raw).await;
    let attach = json(json!({"secrets": {"key-secret": sealed}}));
    lab.service.update_image(luks, attach).await.unwrap();
    assert!(lab.data(luks).await == bytes);
    for (field, request) in [
        ("iv", json!({"name": "x", "value": "AA==", "keyid": master})),
        ("value", json!({"name": "x", "value": "no base64!", "format": "base64"})),
        ("keyid", json!({"name": "x", "value": "AA==", "keyid": luks, "iv": iv})),
    ] {
        let refused = lab.service.create_secret(json(request), &NONE).await.unwrap_err();
        assert_eq!(refused.field.as_deref(), Some(field), "{refused}");
    }
}

/// Every file below a folder that holds the text.
fn holding(folder: &Path, text: &str) -> Vec<String> {
    let found = Command::new("grep").args(["-rlaF", text]).arg(folder).output().unwrap();
    String::from_utf8(found.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_database_its_log_events_or_jobs() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 9);
    let key = secret(&lab, json!({"name": "key", "value": CANARY})).await;
    let images = encrypted(&lab, &bytes, key).await;
    let other = secret(&lab, json!({"name": "other", "value": format!("{CANARY}-2")})).await;
    let nobody = json(json!({"secrets": {}}));
    lab.service.update_image(images[0], nobody).await.unwrap();
    let wrong = json!({"name": "copy", "format": "raw", "secrets": {"key-secret": other}});
    let failed = lab.service.convert_image(images[0], json(wrong), &NONE).await.unwrap();
    assert_eq!(lab.fail(failed).await, ErrorCode::WrongKey);
    let own = json(json!({"secrets": {"key-secret": key}}));
    lab.service.update_image(images[0], own).await.unwrap();
    let jobs = lab
        .service
        .list_jobs(&json(json!({})), &Default::default())
        .await
        .unwrap();
    assert!(jobs.items.len() >= 3 && !serde_json::to_string(&jobs.items).unwrap().contains(CANARY));
    assert!(
        holding(lab.dir.path(), CANARY).is_empty(),
        "{:?}",
        holding(lab.dir.path(), CANARY)
    );
    let debug = format!("{:?}", lab.service.config());
    assert!(!debug.contains(CANARY));
    assert!(collect(lab.service.read_data(images[0], None).await.unwrap().body).await == bytes);
    assert!(lab.service.image(images[0]).await.unwrap().virtual_size >= MIB);
}
