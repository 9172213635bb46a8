//! Encrypting, decrypting, changing keys, and rotating the master key.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod changes;
#[path = "../common/mod.rs"]
mod common;
mod copies;
mod master_key;
mod unused;

use common::{Lab, NONE, json, sample, tool};
use serde_json::{Value, json};
use vdisk_service::model::{ImageId, Job, SecretId};
use vdisk_service::{ErrorCode, Result};

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

/// A change of keys that succeeds.
async fn rekeyed(lab: &Lab, image: ImageId, request: Value) -> Job {
    let job = rekey(lab, image, request).await.unwrap();
    lab.succeed(job).await
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
        rekeyed(
            &lab,
            image,
            json!({"change": "change", "new_secret": two, "iterations": 1000}),
        )
        .await;
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
