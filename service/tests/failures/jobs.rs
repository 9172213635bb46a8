//! The verbs that are jobs.

use serde_json::json;
use vdisk_service::model::Job;
use vdisk_service::request::{Call, ImportOutcome, ImportSource};
use vdisk_service::{ErrorCode, Result, Service};

use crate::act::{done_if, ended};
use crate::common::{OVERLAY, import, json};
use crate::images::SIZE;
use crate::scene::{Scene, Verb};

pub async fn job(scene: &Scene, call: &Call) -> Result<()> {
    let ended = ended(scene, queue(scene, call).await).await;
    match scene.verb {
        // What was done already is no image to do it with any more.
        Verb::CommitDrop => done_if(ended, ErrorCode::NotFound),
        Verb::Flatten => done_if(ended, ErrorCode::InvalidArgument),
        Verb::KeyErase => done_if(ended, ErrorCode::WrongKey),
        Verb::Rebase | Verb::RebaseUnsafe | Verb::Commit | Verb::Check | Verb::Repair | Verb::Compare | Verb::Scan => {
            ended
        }
        Verb::KeyAdd | Verb::KeyChange | Verb::RotateMasterKey => ended,
        _ => done_if(ended, ErrorCode::NameTaken),
    }
}

async fn queue(scene: &Scene, call: &Call) -> Result<Job> {
    let (service, id) = (&scene.lab().service, |name: &str| scene.id(name));
    let convert = async |from: &str, request| service.convert_image(id(from), json(request), call).await;
    match scene.verb {
        Verb::Import => fetch(service, call, ImportSource::PoolFile("found.raw".into()), None).await,
        Verb::ImportConverted => fetch(service, call, ImportSource::PoolFile("found.raw".into()), Some(OVERLAY)).await,
        Verb::ImportFetched => fetch(service, call, ImportSource::Url(crate::parent::disk_url()), None).await,
        Verb::Scan => service.scan_pool("default", call).await,
        Verb::ConvertRaw => convert("overlay", json!({"name": "made", "format": "raw"})).await,
        Verb::ConvertQcow2 => convert("base", json!({"name": "made", "format": OVERLAY, "verify": true})).await,
        Verb::ConvertCompressed => {
            convert("overlay", json!({"name": "made", "format": OVERLAY, "compress": true})).await
        }
        Verb::ConvertOnto => {
            convert(
                "changed",
                json!({"name": "made", "format": OVERLAY, "backing": id("base"), "verify": true}),
            )
            .await
        }
        Verb::Compress => {
            service
                .compress_image(id("disk"), json(json!({"algorithm": "zlib", "verify": true})), call)
                .await
        }
        Verb::Rebase => {
            let request = json(json!({"backing": id("other"), "verify": true}));
            service.rebase_image(id("overlay"), request, call).await
        }
        Verb::RebaseUnsafe => {
            let request = json(json!({"backing": id("other"), "mode": "unsafe"}));
            service.rebase_image(id("overlay"), request, call).await
        }
        Verb::Commit => {
            service
                .commit_image(id("overlay"), json(json!({"verify": true})), call)
                .await
        }
        Verb::CommitDrop => {
            service
                .commit_image(id("overlay"), json(json!({"drop": true})), call)
                .await
        }
        Verb::Flatten => {
            service
                .flatten_image(id("overlay"), json(json!({"verify": true})), call)
                .await
        }
        Verb::Grow => {
            service
                .resize_image(id("disk"), json(json!({"virtual_size": SIZE * 2})), call)
                .await
        }
        Verb::Shrink => {
            let request = json(json!({"virtual_size": SIZE / 2, "shrink": true}));
            service.resize_image(id("disk"), request, call).await
        }
        Verb::Check => service.check_image(id("disk"), json(json!({})), call).await,
        Verb::Repair => {
            service
                .check_image(id("disk"), json(json!({"repair": "all"})), call)
                .await
        }
        Verb::Encrypt => {
            let request = json!({"name": "made", "secret": id("key"), "options": {"iter-time": 10}, "verify": true});
            service.encrypt_image(id("base"), json(request), call).await
        }
        Verb::Decrypt => {
            let request = json(json!({"name": "made", "verify": true}));
            service.decrypt_image(id("closed"), request, call).await
        }
        Verb::KeyAdd => {
            rekey(
                scene,
                json!({"change": "add", "new_secret": id("new"), "iterations": 1000}),
                call,
            )
            .await
        }
        Verb::KeyChange => {
            let request =
                json!({"change": "change", "new_secret": id("new"), "old_secret": id("key"), "iterations": 1000});
            rekey(scene, request, call).await
        }
        Verb::KeyErase => rekey(scene, json!({"change": "erase", "old_secret": id("new")}), call).await,
        Verb::RotateMasterKey => service.rotate_master_key(json(json!({})), call).await,
        _ => {
            service
                .compare_images(id("base"), json(json!({"other": id("changed")})), call)
                .await
        }
    }
}

async fn rekey(scene: &Scene, request: serde_json::Value, call: &Call) -> Result<Job> {
    let service = &scene.lab().service;
    service.rekey_image(scene.id("closed"), json(request), call).await
}

async fn fetch(service: &Service, call: &Call, source: ImportSource, target: Option<&str>) -> Result<Job> {
    let mut request = import("made", Some("raw"), source);
    request.target_format = target.map(str::to_owned);
    match service.import_image(request, call).await? {
        ImportOutcome::Queued(job) => Ok(job),
        ImportOutcome::Uploading(image) => panic!("{image:?}"),
    }
}
