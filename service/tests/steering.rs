//! Jobs beside each other, and what their user wants of them meanwhile.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use common::{Lab, MIB, NONE, OVERLAY, code, json, sample};
use serde_json::json;
use vdisk_service::ErrorCode;
use vdisk_service::model::{ImageState, JobState};
use vdisk_service::request::{Call, JobFilter, UpdateJob};

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_of_one_image_are_kept_apart() {
    let lab = Lab::with(|config| config.workers = 0).await;
    let image = lab.create("disk", "raw", MIB).await;
    let grow = || json(json!({"virtual_size": 2 * MIB}));
    let job = lab.service.resize_image(image.id, grow(), &NONE).await.unwrap();
    assert_eq!(lab.service.image(image.id).await.unwrap().state, ImageState::Busy);
    assert_eq!(
        code(lab.service.resize_image(image.id, grow(), &NONE).await),
        ErrorCode::ImageBusy
    );
    assert_eq!(code(lab.service.delete_image(image.id).await), ErrorCode::ImageBusy);
    lab.service.cancel_job(job.id, &Call::default()).await.unwrap();
    lab.service.delete_image(image.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_convert_leaves_nothing() {
    let lab = Lab::new().await;
    let source = lab.upload("source", Some("raw"), &sample(8 << 20, 7)).await.unwrap();
    let request = json(json!({"name": "copy", "format": "raw", "rate_limit": MIB}));
    let job = lab.service.convert_image(source.id, request, &NONE).await.unwrap();
    lab.until_running(&job).await;
    let cancelling = lab.service.cancel_job(job.id, &Call::default()).await.unwrap();
    assert!(cancelling.cancel_requested || cancelling.state == JobState::Cancelled);
    let start = std::time::Instant::now();
    assert_eq!(lab.finish(cancelling).await.state, JobState::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    lab.assert_tidy().await;
    lab.create("copy", "raw", MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_paused_slowed_and_resumed() {
    let lab = Lab::new().await;
    let bytes = sample(6 << 20, 8);
    let source = lab.upload("source", Some("raw"), &bytes).await.unwrap();
    let request = json(json!({"name": "copy", "format": "raw", "rate_limit": 2 * MIB}));
    let job = lab.service.convert_image(source.id, request, &NONE).await.unwrap();
    lab.until_running(&job).await;
    assert_eq!(
        lab.service.pause_job(job.id, &Call::default()).await.unwrap().state,
        JobState::Paused
    );
    tokio::time::sleep(Duration::from_millis(700)).await;
    let before = lab.service.job(job.id).await.unwrap().progress.done_bytes;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let after = lab.service.job(job.id).await.unwrap();
    assert_eq!((after.state, after.progress.done_bytes), (JobState::Paused, before));
    lab.service
        .update_job(
            job.id,
            UpdateJob {
                rate_limit: Some(0),
                priority: None,
            },
        )
        .await
        .unwrap();
    lab.service.resume_job(job.id, &Call::default()).await.unwrap();
    let done = lab.succeed(job).await;
    assert!(lab.data(done.result_image_id().unwrap()).await == bytes);
    assert_eq!(
        code(lab.service.pause_job(done.id, &Call::default()).await),
        ErrorCode::JobStateConflict
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_jobs_keep_no_worker_from_others() {
    let lab = Lab::new().await;
    let bytes = sample(6 << 20, 12);
    let source = lab.upload("source", Some("raw"), &bytes).await.unwrap();
    let disk = lab.create("disk", OVERLAY, MIB).await;
    let (service, mut paused) = (&lab.service, Vec::new());
    for name in ["a", "b", "c"] {
        let request = json(json!({"name": name, "format": "raw", "rate_limit": MIB}));
        let job = service.convert_image(source.id, request, &NONE).await.unwrap();
        lab.until_running(&job).await;
        service.pause_job(job.id, &NONE).await.unwrap();
        paused.push(job);
    }
    let check = service.check_image(disk.id, json(json!({})), &NONE).await.unwrap();
    lab.succeed(check).await;
    for job in paused {
        assert_eq!(service.job(job.id).await.unwrap().state, JobState::Paused);
        let unlimited = UpdateJob {
            rate_limit: Some(0),
            priority: None,
        };
        service.update_job(job.id, unlimited).await.unwrap();
        service.resume_job(job.id, &NONE).await.unwrap();
        let made = lab.succeed(job).await.result_image_id().unwrap();
        assert!(lab.data(made).await == bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_gives_the_same_job() {
    let lab = Lab::new().await;
    let image = lab.create("disk", "raw", MIB).await;
    let call = Call {
        idempotency_key: Some("once".to_owned()),
    };
    let request = |name: &str| json(json!({"name": name, "format": "raw"}));
    let first = lab.service.convert_image(image.id, request("a"), &call).await.unwrap();
    let again = lab.service.convert_image(image.id, request("a"), &call).await.unwrap();
    assert_eq!(first.id, again.id);
    assert_eq!(
        code(lab.service.convert_image(image.id, request("b"), &call).await),
        ErrorCode::IdempotencyConflict
    );
    lab.succeed(first).await;
    let of_image = JobFilter {
        image: Some(image.id),
        ..JobFilter::default()
    };
    let listed = lab.service.list_jobs(&of_image, &Default::default()).await.unwrap();
    assert_eq!(listed.items.len(), 1);
}
