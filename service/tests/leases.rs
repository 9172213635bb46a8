//! Leases: kept by a process that is busy, lost by one that stood still.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use common::{Lab, MIB, NONE, OVERLAY, body, code, import, json, quick_config, sample};
use futures::{StreamExt, stream};
use serde_json::json;
use vdisk_service::model::JobState;
use vdisk_service::request::{ImportOutcome, ImportSource, UpdateJob, UploadPart, UploadStatus};
use vdisk_service::{Clock, ErrorCode, Service, ServiceConfig, SystemClock, Timestamp};

const CHILD: &str = "VDISK_TEST_STOPPED_SERVICE";
const LEASE: Duration = Duration::from_secs(1);

fn short_lease(config: &mut ServiceConfig) {
    config.lease = LEASE;
    config.heartbeat = LEASE / 5;
}

fn unlimited() -> UpdateJob {
    UpdateJob {
        rate_limit: Some(0),
        priority: None,
    }
}

/// All of the runtime's threads, which is one, are busy for longer than the lease; the heartbeat has its own.
#[tokio::test(flavor = "current_thread")]
async fn a_busy_process_keeps_its_lease() {
    let lab = Lab::with(short_lease).await;
    let source = lab.upload("source", Some("raw"), &sample(4 << 20, 1)).await.unwrap();
    let mut attempts = Vec::new();
    // Now and then the thread stops in the middle of a transaction of the housekeeping, and nobody can write.
    while attempts.len() < 3 && !attempts.contains(&1) {
        let name = format!("copy-{}", attempts.len());
        let request = json(json!({"name": name, "format": OVERLAY, "rate_limit": MIB / 4}));
        let job = lab.service.convert_image(source.id, request, &NONE).await.unwrap();
        while lab.service.job(job.id).await.unwrap().progress.done_bytes == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::thread::sleep(LEASE * 3);
        lab.service.update_job(job.id, unlimited()).await.unwrap();
        attempts.push(lab.succeed(job).await.attempt);
    }
    assert!(attempts.contains(&1), "{attempts:?}");
}

async fn serve(dir: &Path) {
    let mut config = quick_config(dir);
    short_lease(&mut config);
    let service = Service::open(config).await.unwrap();
    let jobs = async || {
        service
            .list_jobs(&Default::default(), &Default::default())
            .await
            .unwrap()
            .items
    };
    loop {
        let jobs = jobs().await;
        if jobs.iter().any(|job| job.state == JobState::Running) {
            std::fs::write(dir.join("running"), b"").unwrap();
        }
        if jobs.iter().all(|job| job.is_finished()) {
            return service.shutdown(Duration::from_secs(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The process stands still for longer than its lease. When it goes on, the attempt that stood still ends without a trace, and the next
/// one does the job.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stood_still_does_not_trust_its_lease() {
    if let Ok(dir) = std::env::var(CHILD) {
        return serve(Path::new(&dir)).await;
    }
    let lab = Lab::with(|config| config.workers = 0).await;
    let bytes = sample(4 << 20, 1);
    let source = lab.upload("source", Some("raw"), &bytes).await.unwrap();
    let request = json(json!({"name": "copy", "format": OVERLAY, "rate_limit": MIB}));
    let job = lab.service.convert_image(source.id, request, &NONE).await.unwrap();
    let Lab { dir, service } = lab;
    service.shutdown(Duration::from_secs(5)).await;
    drop(service);
    let name = "a_process_that_stood_still_does_not_trust_its_lease";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture"]).env(CHILD, dir.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !dir.path().join("running").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the process ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let signal = |name: &str| {
        Command::new("kill")
            .args([name, &child.id().to_string()])
            .status()
            .unwrap()
    };
    assert!(signal("-STOP").success());
    tokio::time::sleep(LEASE * 3).await;
    assert!(signal("-CONT").success());
    assert!(child.wait().unwrap().success());
    let service = Service::open(quick_config(dir.path())).await.unwrap();
    let lab = Lab { dir, service };
    let done = lab.succeed(job).await;
    assert!(done.attempt >= 2, "{:?}", done.steps);
    assert!(lab.data(done.result_image_id().unwrap()).await == bytes);
    lab.assert_tidy().await;
}

/// The machine's clock, put forward or back by milliseconds.
#[derive(Default)]
struct Adjusted(AtomicI64);

impl Clock for Adjusted {
    fn now(&self) -> Timestamp {
        Timestamp(SystemClock.now().0 + self.0.load(Ordering::SeqCst))
    }
}

/// The lease of its locks is over by the clock, long before the housekeeping looks again, as when the process stood still.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_keeps_its_image_whatever_the_clock_does() {
    let clock = Arc::new(Adjusted::default());
    let lab = Lab::with(|config| {
        short_lease(config);
        config.clock = clock.clone();
    })
    .await;
    let bytes = sample(1 << 20, 3);
    let request = import("disk", Some("raw"), ImportSource::Upload(true));
    let ImportOutcome::Uploading(image) = lab.service.import_image(request, &NONE).await.unwrap() else {
        panic!("an upload was asked for")
    };
    let part = UploadPart {
        length: Some(1 << 20),
        total: Some(1 << 20),
        ..UploadPart::default()
    };
    let (go_on, wait) = tokio::sync::oneshot::channel::<()>();
    let rest = body(&bytes[1 << 19..], 1 << 16);
    let rest = Box::pin(stream::once(async { wait.await.map(|()| rest).unwrap() }).flatten());
    let slow = body(&bytes[..1 << 19], 1 << 16).chain(rest);
    let service = lab.service.clone();
    let first = tokio::spawn(async move { service.upload(image.id, part, slow).await });
    while lab.files().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for step in [3_600_000, -7_200_000] {
        clock.0.fetch_add(step, Ordering::SeqCst);
        tokio::time::sleep(LEASE).await;
        let second = lab.service.upload(image.id, part, body(&[0; 1 << 20], 1 << 16));
        assert_eq!(code(second.await), ErrorCode::ImageBusy);
    }
    go_on.send(()).unwrap();
    let status = first.await.unwrap().unwrap();
    assert!(matches!(status, UploadStatus::Complete(_)), "{status:?}");
    assert!(lab.data(image.id).await == bytes);
}
