//! What is there before a verb.

use serde_json::json;
use uuid::Uuid;

use crate::common::{Lab, NONE, OVERLAY, collect, json};
use crate::images::{SIZE, base, changed, leaking, other};
use crate::scene::{Ids, Verb};

const SECRET: &str = "0123456789abcdef";

/// Makes what the verb needs.
pub async fn prepare(verb: Verb, lab: &Lab) -> Ids {
    let mut ids = Ids::new();
    let mut note = |name: &str, id: Uuid| _ = ids.insert(name.to_owned(), id);
    match verb {
        Verb::Create | Verb::CreateFails | Verb::CreatePreallocated | Verb::Upload | Verb::UploadInParts => {}
        Verb::UploadDamaged | Verb::UploadRefused | Verb::UploadNotRecorded | Verb::ImportFetched => {}
        Verb::Token | Verb::Audit => {}
        Verb::Import | Verb::ImportConverted | Verb::Scan => {
            std::fs::write(lab.pool().join("found.raw"), base()).unwrap();
        }
        Verb::CreateOverlay | Verb::Update | Verb::Delete | Verb::DeleteFails | Verb::ConvertQcow2 => {
            note("base", raw(lab, "base", &base()).await);
        }
        Verb::Cancel | Verb::Steer | Verb::HandBack => note("base", raw(lab, "base", &base()).await),
        Verb::SnapshotCreate | Verb::SnapshotDelete => {
            let disk = packed(lab, "disk", &base()).await;
            note("disk", disk);
            if verb == Verb::SnapshotDelete {
                lab.service.create_snapshot(disk, "s1", &NONE).await.unwrap();
            }
        }
        Verb::SnapshotApply => {
            let disk = packed(lab, "disk", &base()).await;
            note("disk", disk);
            lab.service.create_snapshot(disk, "s1", &NONE).await.unwrap();
            let delta = overlay(lab, disk).await;
            let request = json(json!({"drop": true}));
            let job = lab.service.commit_image(delta, request, &NONE).await.unwrap();
            lab.succeed(job).await;
        }
        Verb::Compress | Verb::Grow | Verb::Shrink | Verb::Check => {
            note("disk", packed(lab, "disk", &changed()).await);
        }
        Verb::Repair => {
            let plain = packed(lab, "plain", &changed()).await;
            let file = collect(lab.service.read_file(plain, None).await.unwrap().body).await;
            note(
                "disk",
                lab.upload("disk", Some(OVERLAY), &leaking(file)).await.unwrap().id,
            );
        }
        Verb::Rebase | Verb::RebaseUnsafe => {
            let base = raw(lab, "base", &base()).await;
            note("overlay", overlay(lab, base).await);
            note("other", raw(lab, "other", &other()).await);
        }
        Verb::Commit => {
            // One that allocates, unlike the raw one of `CommitDrop`.
            let base = packed(lab, "base", &base()).await;
            note("base", base);
            note("overlay", overlay(lab, base).await);
        }
        Verb::ConvertRaw | Verb::ConvertCompressed | Verb::CommitDrop | Verb::Flatten => {
            let base = raw(lab, "base", &base()).await;
            note("base", base);
            note("overlay", overlay(lab, base).await);
        }
        Verb::ConvertOnto | Verb::Compare => {
            note("base", raw(lab, "base", &base()).await);
            note("changed", raw(lab, "changed", &changed()).await);
        }
        Verb::Encrypt => {
            note("base", raw(lab, "base", &base()).await);
            note("key", secret(lab, "key").await);
        }
        Verb::Decrypt | Verb::RotateMasterKey => _ = closed(lab, &mut ids).await,
        Verb::KeyAdd | Verb::KeyChange | Verb::KeyErase => {
            let image = closed(lab, &mut ids).await;
            let new = secret(lab, "new").await;
            ids.insert("new".to_owned(), new);
            if verb == Verb::KeyErase {
                let request = json(json!({"change": "add", "new_secret": new, "iterations": 1000}));
                let job = lab.service.rekey_image(image, request, &NONE).await.unwrap();
                lab.succeed(job).await;
            }
        }
        Verb::Start => start(lab, &mut ids).await,
        Verb::Secret => {
            let request = json(json!({"name": "old", "value": "swordfish"}));
            note("old", lab.service.create_secret(request, &NONE).await.unwrap().id);
        }
        Verb::Webhook | Verb::WebhookDown => {
            let url = if verb == Verb::Webhook {
                crate::parent::sink_url()
            } else {
                "http://127.0.0.1:9/".to_owned()
            };
            let request = json(json!({"url": url, "secret": SECRET, "events": ["image.created"]}));
            let hook = lab.service.create_webhook(request, &NONE).await.unwrap();
            note("hook", hook.id);
        }
    }
    ids
}

/// What an unclean end can leave: files of nobody, a file on its way out, a file that is gone.
async fn start(lab: &Lab, ids: &mut Ids) {
    let kept = raw(lab, "kept", &base()).await;
    let gone = raw(lab, "gone", &other()).await;
    ids.extend([("kept".to_owned(), kept), ("gone".to_owned(), gone)]);
    let pool = lab.pool();
    std::fs::rename(pool.join(kept.to_string()), pool.join(format!(".{kept}.trash"))).unwrap();
    std::fs::rename(pool.join(gone.to_string()), pool.join("../elsewhere")).unwrap();
    let (image, maker) = (Uuid::now_v7(), Uuid::now_v7());
    for name in [
        format!(".{image}.{maker}.part"),
        format!(".{image}.upload"),
        format!(".{image}.trash"),
    ] {
        std::fs::write(pool.join(name), vec![1; SIZE]).unwrap();
    }
}

async fn secret(lab: &Lab, name: &str) -> Uuid {
    let request = json(json!({"name": name, "value": format!("value of {name}")}));
    lab.service.create_secret(request, &NONE).await.unwrap().id
}

/// A LUKS image, and the secret that opens it.
async fn closed(lab: &Lab, ids: &mut Ids) -> Uuid {
    let key = secret(lab, "key").await;
    let plain = raw(lab, "to-encrypt", &base()).await;
    let request = json(json!({"name": "closed", "secret": key, "options": {"iter-time": 10}}));
    let job = lab.service.encrypt_image(plain, request, &NONE).await.unwrap();
    let closed = lab.succeed(job).await.result_image_id().unwrap();
    lab.service.delete_image(plain).await.unwrap();
    ids.extend([("key".to_owned(), key), ("closed".to_owned(), closed)]);
    closed
}

async fn raw(lab: &Lab, name: &str, bytes: &[u8]) -> Uuid {
    lab.upload(name, Some("raw"), bytes).await.unwrap().id
}

/// A qcow2 image with these bytes.
async fn packed(lab: &Lab, name: &str, bytes: &[u8]) -> Uuid {
    let plain = raw(lab, "to-convert", bytes).await;
    let made = convert(lab, plain, json!({"name": name, "format": OVERLAY})).await;
    lab.service.delete_image(plain).await.unwrap();
    made
}

/// A qcow2 overlay that shows what [`changed`] says.
async fn overlay(lab: &Lab, base: Uuid) -> Uuid {
    let plain = raw(lab, "to-convert", &changed()).await;
    let made = convert(
        lab,
        plain,
        json!({"name": "overlay", "format": OVERLAY, "backing": base}),
    )
    .await;
    lab.service.delete_image(plain).await.unwrap();
    made
}

async fn convert(lab: &Lab, id: Uuid, request: serde_json::Value) -> Uuid {
    let job = lab.service.convert_image(id, json(request), &NONE).await.unwrap();
    lab.succeed(job).await.result_image_id().unwrap()
}
