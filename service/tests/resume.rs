//! A copy whose process is killed goes on in the next one: at most 64 MiB are copied again for each kill, and the bytes are right.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Lab, MIB, NONE, json, quick_config};
use serde_json::{Value, json};
use vdisk_service::Service;
use vdisk_service::model::{ImageId, Job, JobState};
use vdisk_service::request::Call;

const CHILD: &str = "VDISK_TEST_RESUMED_SERVICE";
const SIZE: usize = 200 << 20;
/// Where the process is killed, in bytes of progress.
const KILLS: [u64; 2] = [90 << 20, 160 << 20];
/// What a kill may cost.
const AGAIN: u64 = 64 * MIB;
/// Tables, the database, the log.
const BESIDE: u64 = 12 * MIB;

/// The process to be killed. It says how far the job is, in a file.
async fn serve_until_killed(dir: &Path) {
    let mut config = quick_config(dir);
    config.workers = 1;
    let service = Service::open(config).await.unwrap();
    loop {
        let jobs = service.list_jobs(&json(json!({})), &Default::default()).await.unwrap();
        let running = jobs.items.iter().find(|job| job.state == JobState::Running);
        let done = match running {
            Some(job) => job.progress.done_bytes,
            None if jobs.items.iter().all(Job::is_finished) => u64::MAX,
            None => 0,
        };
        std::fs::write(dir.join("progress.new"), done.to_string()).unwrap();
        std::fs::rename(dir.join("progress.new"), dir.join("progress")).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn spawn(dir: &Path) -> Child {
    let _ = std::fs::remove_file(dir.join("progress"));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["killed_copies_go_on", "--exact", "--nocapture"])
        .env(CHILD, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Waits for the progress and kills. Gives the bytes that the process wrote.
async fn kill_at(mut child: Child, dir: &Path, progress: u64) -> u64 {
    for _ in 0..20_000 {
        let done = std::fs::read_to_string(dir.join("progress")).unwrap_or_default();
        if done.parse().unwrap_or(0) >= progress {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let io = std::fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    written.parse().unwrap()
}

/// Data all over.
fn content() -> Vec<u8> {
    let mut state = 7_u64;
    let mut bytes = Vec::with_capacity(SIZE);
    while bytes.len() < SIZE {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Eight equal bytes at a time: compression finds something to do, and not much.
        bytes.extend_from_slice(&[(state >> 56) as u8 | 1; 8]);
    }
    bytes
}

#[derive(Clone, Copy)]
enum Verb {
    Convert(&'static str, bool),
    ConvertOnto,
    Compress,
}

async fn queue(lab: &Lab, source: ImageId, verb: Verb) -> Job {
    let service = &lab.service;
    let convert = |request: Value| async move { service.convert_image(source, json(request), &NONE).await };
    let slow = 80 * MIB;
    let job = match verb {
        Verb::Convert(format, compress) => {
            convert(json!({"name": "copy", "format": format, "compress": compress, "rate_limit": slow})).await
        }
        Verb::ConvertOnto => {
            let base = lab.create("base", "raw", SIZE as u64 / 2).await.id;
            convert(json!({"name": "copy", "format": "qcow2", "backing": base, "rate_limit": slow})).await
        }
        Verb::Compress => {
            let request = json(json!({"algorithm": "zstd", "level": 1, "rate_limit": slow}));
            service.compress_image(source, request, &NONE).await
        }
    };
    job.unwrap()
}

async fn killed_twice(verb: Verb, bytes: &[u8]) {
    let lab = Lab::new().await;
    let mut source = lab.upload("source", Some("raw"), bytes).await.unwrap().id;
    if matches!(verb, Verb::Compress) {
        let request = json(json!({"name": "plain", "format": "qcow2"}));
        let made = lab.service.convert_image(source, request, &NONE).await.unwrap();
        source = lab.succeed(made).await.result_image_id().unwrap();
    }
    let Lab { dir, service } = lab;
    service.shutdown(Duration::from_secs(5)).await;
    drop(service);
    let mut config = quick_config(dir.path());
    config.workers = 0;
    let service = Service::open(config).await.unwrap();
    let lab = Lab { dir, service };
    let job = queue(&lab, source, verb).await;
    let Lab { dir, service } = lab;
    service.shutdown(Duration::from_secs(5)).await;
    drop(service);
    let mut written = 0;
    for progress in KILLS {
        written += kill_at(spawn(dir.path()), dir.path(), progress).await;
    }
    written += kill_at(spawn(dir.path()), dir.path(), u64::MAX).await;
    let most = SIZE as u64 + KILLS.len() as u64 * AGAIN + BESIDE;
    assert!(written <= most, "{} MiB were written", written / MIB);
    let service = Service::open(quick_config(dir.path())).await.unwrap();
    let lab = Lab { dir, service };
    let done = lab.succeed(job).await;
    assert_eq!(done.attempt, 3, "{:?}", done.steps);
    let went_on = done
        .steps
        .iter()
        .filter(|step| step.text.starts_with("going on at byte"));
    assert_eq!(went_on.count(), 2, "{:?}", done.steps);
    let image = done.result_image_id().unwrap();
    assert!(lab.data(image).await == bytes, "the content is another");
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_copies_go_on() {
    if let Ok(dir) = std::env::var(CHILD) {
        return serve_until_killed(Path::new(&dir)).await;
    }
    let bytes = content();
    for verb in [
        Verb::Convert("raw", false),
        Verb::Convert("qcow2", false),
        Verb::Convert("qcow2", true),
        Verb::Convert("vmdk", false),
        Verb::ConvertOnto,
        Verb::Compress,
    ] {
        killed_twice(verb, &bytes).await;
    }
}

/// A job that waits for its next attempt holds a file half filled; when it is cancelled instead, that file goes too.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_copy_leaves_nothing_for_an_attempt_that_never_comes() {
    let lab = Lab::new().await;
    let source = lab.upload("source", Some("raw"), &content()).await.unwrap().id;
    let job = queue(&lab, source, Verb::Convert("raw", false)).await;
    while lab.service.job(job.id).await.unwrap().progress.done_bytes < 80 * MIB {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let Lab { dir, service } = lab;
    service.shutdown(Duration::ZERO).await;
    drop(service);
    let mut config = quick_config(dir.path());
    config.workers = 0;
    let service = Service::open(config).await.unwrap();
    let lab = Lab { dir, service };
    assert_eq!(
        lab.files().len(),
        2,
        "the source and what was filled: {:?}",
        lab.files()
    );
    lab.service.cancel_job(job.id, &Call::default()).await.unwrap();
    lab.assert_tidy().await;
}
