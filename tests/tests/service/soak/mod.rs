//! Mixed work over both transports while the program is killed again and again. In the end every accepted job has ended, once, the
//! content was right all along, no file is left over, and the program has not grown.
//!
//! Seconds long, by hand; `VDISK_SOAK_MINUTES=60` makes it an hour with a kill a minute, at a rate that leaves room for others.

mod calls;
mod grpc_work;
mod http_work;
mod usage;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use self::calls::Calls;
use self::usage::Usage;
use crate::vdiskd::{Vdiskd, folder, pool_files};

/// What all workers share.
pub struct Soak {
    /// Where the program listens, the same over all its starts.
    pub url: String,
    /// No new round is begun.
    pub over: AtomicBool,
    /// Rounds that were done.
    pub rounds: AtomicU64,
    /// Jobs that were accepted.
    pub accepted: std::sync::Mutex<Vec<String>>,
    /// Between the rounds of a worker.
    pause: Duration,
}

impl Soak {
    pub fn accept(&self, job: &str) {
        self.accepted.lock().unwrap().push(job.to_owned());
    }

    pub fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    pub fn round(&self) -> u64 {
        self.rounds.fetch_add(1, Ordering::Relaxed)
    }

    pub async fn rest(&self) {
        tokio::time::sleep(self.pause).await;
    }
}

/// How long, how often the program is killed, and the pause between rounds.
fn times() -> (Duration, Duration, Duration) {
    match std::env::var("VDISK_SOAK_MINUTES")
        .ok()
        .and_then(|minutes| minutes.parse::<u64>().ok())
    {
        Some(minutes) => (
            Duration::from_secs(60 * minutes),
            Duration::from_secs(60),
            Duration::from_secs(1),
        ),
        None => (Duration::from_secs(16), Duration::from_secs(4), Duration::ZERO),
    }
}

const OPTIONS: &[&str] = &["--workers", "3", "--lease-seconds", "30"];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by hand"]
async fn nothing_is_lost_under_mixed_work_and_kills() {
    let (long, between, pause) = times();
    let data = folder();
    let mut program = Vdiskd::start(data.path(), OPTIONS);
    let listen = program.url.strip_prefix("http://").unwrap().to_owned();
    let soak = Arc::new(Soak {
        url: program.url.clone(),
        over: AtomicBool::new(false),
        rounds: AtomicU64::new(0),
        accepted: Default::default(),
        pause,
    });
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (runtime, shared) = (tokio::runtime::Handle::current(), soak.clone());
        workers.spawn(http_work::work(soak.clone()));
        workers.spawn_blocking(move || runtime.block_on(grpc_work::work(shared)));
    }
    let (began, mut kills, mut usage) = (Instant::now(), 0, Vec::new());
    while began.elapsed() + between <= long {
        tokio::select! {
            () = tokio::time::sleep(between) => {}
            // Work without an end ended: with what went wrong.
            ended = workers.join_next() => ended.unwrap().unwrap(),
        }
        usage.push(Usage::of(program.id()));
        program.kill();
        kills += 1;
        program = Vdiskd::start_at(&listen, data.path(), OPTIONS);
    }
    soak.over.store(true, Ordering::Relaxed);
    while let Some(ended) = workers.join_next().await {
        ended.unwrap();
    }
    let (jobs, attempts) = every_job_ended_once(&soak).await;
    nothing_is_left(&soak, data.path()).await;
    println!(
        "{} s, {kills} kills, {} rounds, {jobs} jobs accepted, {attempts} attempts; {}",
        began.elapsed().as_secs(),
        soak.rounds.load(Ordering::Relaxed),
        usage::summary(&usage),
    );
    usage::assert_flat(&usage);
}

async fn every_job_ended_once(soak: &Soak) -> (usize, u64) {
    let calls = Calls::new(&soak.url);
    let accepted = soak.accepted.lock().unwrap().clone();
    let mut attempts = 0;
    for id in &accepted {
        let job = calls.get(&format!("/v1/jobs/{id}?wait=60s")).await;
        let state = job["state"].as_str().unwrap();
        assert!(matches!(state, "succeeded" | "cancelled"), "{job}");
        attempts += job["attempt"].as_u64().unwrap();
        assert_eq!(calls.endings(id).await, 1, "{job}");
    }
    let open = calls.get("/v1/jobs?page_size=1000").await["items"]
        .as_array()
        .unwrap()
        .clone();
    assert!(
        open.iter().all(|job| !job["finished_at"].is_null()),
        "a job that never ends"
    );
    (accepted.len(), attempts)
}

/// What is there are images, each with one file, and each of them sound.
async fn nothing_is_left(soak: &Soak, data: &Path) {
    let calls = Calls::new(&soak.url);
    let images = calls.get("/v1/images?page_size=1000").await["items"]
        .as_array()
        .unwrap()
        .clone();
    let files = pool_files(data);
    assert_eq!(files.len(), images.len(), "{files:?} for {images:?}");
    for image in images.iter().filter(|image| image["format"] == "qcow2") {
        let job = calls
            .run(
                soak,
                &format!("/v1/images/{}/check", image["id"].as_str().unwrap()),
                Value::Null,
            )
            .await;
        assert_eq!(job["result"]["corruptions"], 0, "{job}");
    }
}
