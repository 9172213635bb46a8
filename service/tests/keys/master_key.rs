//! The key that seals the others.

use std::time::Duration;

use serde_json::{Value, json};
use vdisk_service::config::MasterKey;
use vdisk_service::{ErrorCode, Result, Service};

use crate::common::{Lab, code, json, quick_config, sample};
use crate::{NONE, both_forms, secret};

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
