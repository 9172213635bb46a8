//! The verbs themselves, as a client does them that asks again until it has an answer: with the same idempotency key, and taking
//! "it is done already" for an answer.

use std::time::Duration;

use serde_json::json;
use vdisk_service::model::{Job, JobState, Role};
use vdisk_service::request::{Call, Checksum, ImportOutcome, ImportSource, UpdateJob, UploadPart, UploadStatus};
use vdisk_service::{Audited, ErrorCode, Result, Service, ServiceError};

use crate::child::case_config;
use crate::common::{Lab, OVERLAY, body, collect, import, json, new_image};
use crate::images::{SIZE, base};
use crate::jobs;
use crate::scene::{Scene, Verb};

/// Slow enough to be met in the middle.
const SLOW: u64 = 256 << 10;

/// Does what the verb says. `round` tells requests apart that are not repetitions of each other.
pub async fn act(scene: &mut Scene, round: u32) -> Result<()> {
    let call = Call {
        idempotency_key: Some(format!("{:?}-{round}", scene.verb)),
    };
    let outcome = match scene.verb {
        verb if verb.is_job() => jobs::job(scene, &call).await,
        Verb::Cancel | Verb::Steer | Verb::HandBack => steer(scene, &call).await,
        Verb::Upload | Verb::UploadInParts | Verb::UploadDamaged | Verb::UploadRefused | Verb::UploadNotRecorded => {
            upload(scene, &call).await
        }
        Verb::Audit => audit(&scene.lab().service, round).await,
        // What is done at once is asked for again with the same key, until it is done.
        Verb::Secret | Verb::Token | Verb::Webhook | Verb::WebhookDown => {
            let call = Call {
                idempotency_key: Some(format!("{:?}", scene.verb)),
            };
            request(scene, &call).await
        }
        _ => request(scene, &call).await,
    };
    match round {
        0 => outcome,
        // What another request has made by now.
        _ => done_if(outcome, ErrorCode::NameTaken),
    }
}

async fn request(scene: &mut Scene, call: &Call) -> Result<()> {
    let service = &scene.lab().service;
    let size = Some(SIZE as u64);
    match scene.verb {
        Verb::Create | Verb::CreateFails => {
            let request = new_image("made", OVERLAY, size, None);
            service.create_image(request, call).await.map(drop)
        }
        Verb::CreatePreallocated => {
            let mut request = new_image("made", OVERLAY, size, None);
            request.options = [("preallocation".to_owned(), "falloc".to_owned())].into();
            service.create_image(request, call).await.map(drop)
        }
        Verb::CreateOverlay => {
            let request = new_image("made", OVERLAY, None, Some(scene.id("base")));
            service.create_image(request, call).await.map(drop)
        }
        Verb::Update => {
            // Whoever reads it takes locks too.
            collect(service.read_data(scene.id("base"), None).await?.body).await;
            let request = json(json!({"name": "renamed", "labels": {"a": "b"}}));
            service.update_image(scene.id("base"), request).await.map(drop)
        }
        Verb::Delete | Verb::DeleteFails => done_if(service.delete_image(scene.id("base")).await, ErrorCode::NotFound),
        Verb::SnapshotCreate => service.create_snapshot(scene.id("disk"), "s1", call).await.map(drop),
        Verb::SnapshotDelete => {
            let deleted = service.delete_snapshot(scene.id("disk"), "s1").await;
            done_if(deleted, ErrorCode::NotFound)
        }
        Verb::SnapshotApply => service.apply_snapshot(scene.id("disk"), "s1", call).await.map(drop),
        Verb::Start => {
            restart(scene).await;
            Ok(())
        }
        Verb::Secret => {
            let request = json(json!({"name": "new", "value": "sesame"}));
            service.create_secret(request, call).await?;
            done_if(service.delete_secret(scene.id("old")).await, ErrorCode::NotFound)
        }
        Verb::Token => {
            let request = json(json!({"name": "kept", "role": "reader"}));
            service.create_token(request, call).await?;
            let call = Call {
                idempotency_key: call.idempotency_key.as_ref().map(|key| format!("{key}-2")),
            };
            let made = service
                .create_token(json(json!({"name": "revoked", "role": "admin"})), &call)
                .await;
            match made {
                Ok((token, _)) => done_if(service.revoke_token(token.id).await, ErrorCode::NotFound),
                // The token that the key stands for was revoked by then.
                Err(error) => done_if::<()>(Err(error), ErrorCode::NotFound),
            }
        }
        _ => webhook(scene, call).await,
    }
}

/// Something to tell, until it was told or the target was found out to be down.
async fn webhook(scene: &Scene, call: &Call) -> Result<()> {
    let service = &scene.lab().service;
    let request =
        json(json!({"url": "http://127.0.0.1:9/", "secret": "0123456789abcdef", "events": ["image.deleted"]}));
    let other = Call {
        idempotency_key: call.idempotency_key.as_ref().map(|key| format!("{key}-hook")),
    };
    let second = service.create_webhook(request, &other).await;
    let request = new_image("made", "raw", Some(512), None);
    service.create_image(request, call).await?;
    let tried = async || {
        let hook = service.webhook(scene.id("hook")).await?;
        Ok::<_, ServiceError>(if scene.verb == Verb::Webhook {
            hook.delivered > 0
        } else {
            hook.failures > 0
        })
    };
    for _ in 0..3_000 {
        if tried().await? {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    match second {
        Ok(hook) => done_if(service.delete_webhook(hook.id).await, ErrorCode::NotFound),
        Err(error) => done_if::<()>(Err(error), ErrorCode::NotFound),
    }
}

/// The entry's target is the round.
async fn audit(service: &Service, round: u32) -> Result<()> {
    let target = round.to_string();
    service.audit(Audited {
        caller: "tester".to_owned(),
        role: Some(Role::Admin),
        transport: "http",
        action: "GET /".to_owned(),
        target: target.clone(),
        outcome: "200".to_owned(),
        request_id: None,
    });
    for _ in 0..500 {
        let entries = service.list_audit(&Default::default()).await?.items;
        if entries.iter().any(|entry| entry.target == target) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(ServiceError::internal("the entry was not written"))
}

/// Ends the service and starts it again.
pub async fn restart(scene: &mut Scene) {
    let Some(lab) = scene.lab.take() else {
        panic!("there is no service to start again")
    };
    let Lab { dir, service } = lab;
    service.shutdown(Duration::ZERO).await;
    drop(service);
    let mut tries = 0;
    let service = loop {
        // A start that fails is tried again, as whoever looks after the process does; and what a request left to be done may hold the
        // folder for a moment.
        match Service::open(case_config(dir.path())).await {
            Ok(service) => break service,
            Err(error) if tries == 100 => panic!("{error:?}"),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    scene.lab = Some(Lab { dir, service });
}

async fn upload(scene: &Scene, call: &Call) -> Result<()> {
    let service = &scene.lab().service;
    let (format, bytes) = match scene.verb {
        Verb::UploadRefused => (OVERLAY, vec![7; 4096]),
        _ => ("raw", base()),
    };
    let request = import("made", Some(format), ImportSource::Upload(true));
    let image = match service.import_image(request, call).await {
        Ok(ImportOutcome::Uploading(image)) => image,
        Ok(ImportOutcome::Queued(job)) => panic!("{job:?}"),
        Err(error) if error.code == ErrorCode::NameTaken => find(scene, "made").await?,
        Err(error) => return Err(error),
    };
    let part = if scene.verb == Verb::UploadInParts {
        bytes.len() / 3
    } else {
        bytes.len()
    };
    let mut damaged = scene.verb == Verb::UploadDamaged;
    loop {
        let received = match service.upload_status(image.id).await {
            Ok(UploadStatus::Incomplete { received }) => received,
            Ok(UploadStatus::Complete(_)) => return Ok(()),
            Err(error) if scene.verb == Verb::UploadRefused => {
                return done_if::<()>(Err(error), ErrorCode::ImageNotReady);
            }
            Err(error) => return Err(error),
        };
        // A file that is all there, and no image yet, is sent anew.
        let offset = if received as usize >= bytes.len() {
            0
        } else {
            received as usize
        };
        let end = (offset + part).min(bytes.len());
        let part = UploadPart {
            offset: offset as u64,
            length: Some((end - offset) as u64),
            total: Some(bytes.len() as u64),
            checksum: damaged.then_some(Checksum::Sha256([7; 32])),
            ..UploadPart::default()
        };
        match service.upload(image.id, part, body(&bytes[offset..end], 50_000)).await {
            Err(error) if scene.verb == Verb::UploadRefused => {
                return done_if::<()>(Err(error), ErrorCode::FormatMismatch);
            }
            Err(error) if damaged && error.code == ErrorCode::ChecksumMismatch => damaged = false,
            other => drop(other?),
        }
    }
}

async fn steer(scene: &mut Scene, call: &Call) -> Result<()> {
    let request = json(json!({"name": "made", "format": OVERLAY, "rate_limit": SLOW}));
    let queued = scene.lab().service.convert_image(scene.id("base"), request, call).await;
    let job = match queued {
        Err(error) if error.code == ErrorCode::NameTaken => return Ok(()),
        queued => queued?,
    };
    if scene.verb == Verb::Cancel {
        started(&scene.lab().service, &job).await?;
        let asked = scene.lab().service.cancel_job(job.id, &Call::default()).await;
        done_if(asked, ErrorCode::JobStateConflict)?;
        return match ended(scene, Ok(job)).await {
            Err(error) if error.code == ErrorCode::Cancelled => Ok(()),
            ended => ended,
        };
    }
    if scene.verb == Verb::HandBack {
        started(&scene.lab().service, &job).await?;
        restart(scene).await;
    } else {
        let (service, call) = (&scene.lab().service, Call::default());
        insist(async || service.pause_job(job.id, &call).await).await?;
        insist(async || service.resume_job(job.id, &call).await).await?;
    }
    let unlimited = UpdateJob {
        rate_limit: Some(0),
        priority: None,
    };
    let service = &scene.lab().service;
    insist(async || service.update_job(job.id, unlimited.clone()).await).await?;
    ended(scene, Ok(job)).await
}

/// Asks again where the first answer is an error: who was paused must not be left so.
async fn insist(ask: impl AsyncFn() -> Result<Job>) -> Result<()> {
    if done_if(ask().await, ErrorCode::JobStateConflict).is_ok() {
        return Ok(());
    }
    done_if(ask().await, ErrorCode::JobStateConflict)
}

async fn started(service: &Service, job: &Job) -> Result<()> {
    for _ in 0..20_000 {
        if service.job(job.id).await?.state != JobState::Queued {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Waits for a job, and for its worker to have put everything away.
pub async fn ended(scene: &Scene, queued: Result<Job>) -> Result<()> {
    let done = scene.lab().finish(queued?).await;
    match (done.state, done.error) {
        (JobState::Succeeded, _) => Ok(()),
        (JobState::Cancelled, _) => Err(ServiceError::new(ErrorCode::Cancelled, "cancelled")),
        (_, Some(error)) => Err(ServiceError::new(error.code(), error.detail)),
        (state, None) => panic!("{state} without an error"),
    }
}

async fn find(scene: &Scene, name: &str) -> Result<vdisk_service::model::Image> {
    let images = scene
        .lab()
        .service
        .list_images(&Default::default(), &Default::default())
        .await?;
    let found = images.items.into_iter().find(|image| image.name == name);
    found.ok_or_else(|| ServiceError::internal("no such image"))
}

pub fn done_if<T>(outcome: Result<T>, code: ErrorCode) -> Result<()> {
    match outcome {
        Err(error) if error.code != code => Err(error),
        _ => Ok(()),
    }
}
