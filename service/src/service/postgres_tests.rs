//! Two services on one PostgreSQL database and one folder: what one queues the other may run, once.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use zeroize::Zeroizing;

use crate::config::{MasterKey, ServiceConfig};
use crate::model::{Job, JobState};
use crate::request::{Call, CreateImage, UpdateJob, WaitUntil};
use crate::service::Service;
use crate::store::testing::Postgres;

const NONE: Call = Call { idempotency_key: None };

async fn node(dir: &Path, name: &str, url: &str, workers: usize) -> Service {
    let beats = (Duration::from_secs(2), Duration::from_millis(300));
    node_that_beats(dir, name, url, workers, beats).await
}

async fn node_that_beats(
    dir: &Path,
    name: &str,
    url: &str,
    workers: usize,
    (lease, heartbeat): (Duration, Duration),
) -> Service {
    let mut config = ServiceConfig::new(dir.join(name));
    config.database_url = Some(url.to_owned());
    config.pools.insert("default".to_owned(), dir.join("pool"));
    config.master_key = Some(MasterKey(Zeroizing::new([1; 32])));
    config.workers = workers;
    (config.lease, config.heartbeat) = (lease, heartbeat);
    config.progress_interval = Duration::from_millis(50);
    config.poll_interval = Duration::from_millis(50);
    Service::open(config).await.unwrap()
}

async fn convert(service: &Service, name: &str, rate_limit: Option<u64>) -> Job {
    let existing = service
        .list_images(&Default::default(), &Default::default())
        .await
        .unwrap();
    let source = match existing.items.first() {
        Some(image) => image.id,
        None => {
            // Data, although zeroes: holes would be copied at any speed.
            let options = json!({"preallocation": "full"});
            let request = json!({"name": "source", "format": "raw", "virtual_size": 8 << 20, "options": options});
            let request: CreateImage = serde_json::from_value(request).unwrap();
            service.create_image(request, &NONE).await.unwrap().id
        }
    };
    let request = json!({"name": name, "format": "raw", "rate_limit": rate_limit});
    service
        .convert_image(source, serde_json::from_value(request).unwrap(), &NONE)
        .await
        .unwrap()
}

async fn finish(service: &Service, job: &Job) -> Job {
    service
        .wait_job(job.id, WaitUntil::Finished, Duration::from_secs(120))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_share_the_work_and_take_over_from_the_dead() {
    let Some(server) = Postgres::start() else { return };
    let url = server.new_database("nodes");
    let dir = tempfile::tempdir().unwrap();
    let (front, back) = (
        node(dir.path(), "a", &url, 0).await,
        node(dir.path(), "b", &url, 2).await,
    );
    let mut jobs = Vec::new();
    for number in 0..8 {
        jobs.push(convert(&front, &format!("copy{number}"), None).await);
    }
    for job in &jobs {
        let done = finish(&front, job).await;
        assert_eq!((done.state, done.attempt), (JobState::Succeeded, 1), "{:?}", done.error);
    }

    // A node that stops without a word: its heartbeats end, its lease runs out.
    let slow = convert(&front, "slow", Some(1 << 20)).await;
    while front.job(slow.id).await.unwrap().state == JobState::Queued {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for task in std::mem::take(&mut *super::lock(&back.inner.tasks)) {
        task.abort();
    }
    let third = node(dir.path(), "c", &url, 1).await;
    front
        .update_job(
            slow.id,
            UpdateJob {
                rate_limit: Some(0),
                priority: None,
            },
        )
        .await
        .unwrap();
    let done = finish(&front, &slow).await;
    assert_eq!((done.state, done.attempt), (JobState::Succeeded, 2), "{:?}", done.error);
    let records = front
        .list_images(&Default::default(), &Default::default())
        .await
        .unwrap()
        .items
        .len();
    // The dead node's thread still holds its own copy until it notices; it never shows it.
    let shown = std::fs::read_dir(dir.path().join("pool")).unwrap();
    let shown = shown
        .filter(|entry| !entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'))
        .count();
    assert_eq!(shown, records);
    for service in [front, back, third] {
        service.shutdown(Duration::from_secs(1)).await;
    }
}

/// The node that runs a job beats rarely; what another node's user wants is heard of long before.
#[tokio::test(flavor = "multi_thread")]
async fn wishes_of_another_node_are_heard_between_heartbeats() {
    let Some(server) = Postgres::start() else { return };
    let url = server.new_database("wishes");
    let dir = tempfile::tempdir().unwrap();
    let (hour, half) = (Duration::from_secs(7200), Duration::from_secs(3600));
    let front = node(dir.path(), "a", &url, 0).await;
    let back = node_that_beats(dir.path(), "b", &url, 1, (hour, half)).await;
    let job = convert(&front, "slow", Some(64 << 10)).await;
    let control = loop {
        let running = back.inner.running().get(&job.id).map(|running| running.control.clone());
        match running {
            Some(control) => break control,
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let until = async |wanted: bool| {
        while control.is_paused() != wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let steered = async {
        front.pause_job(job.id, &Call::default()).await.unwrap();
        until(true).await;
        front.resume_job(job.id, &Call::default()).await.unwrap();
        until(false).await;
        let unlimited = UpdateJob {
            rate_limit: Some(0),
            priority: None,
        };
        front.update_job(job.id, unlimited).await.unwrap();
        finish(&front, &job).await
    };
    let done = tokio::time::timeout(Duration::from_secs(60), steered).await.unwrap();
    assert_eq!((done.state, done.attempt), (JobState::Succeeded, 1), "{:?}", done.error);
    for service in [front, back] {
        service.shutdown(Duration::from_secs(1)).await;
    }
}

const STOPPED: &str = "VDISK_TEST_STOPPED_NODE";

/// Runs jobs until it has none any more, and says so.
async fn run_until_fenced(dir: &Path, url: &str) {
    let service = node(dir, "stopped", url, 1).await;
    let count = || service.inner.running().len();
    while count() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("\nrunning");
    while count() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("\nlet go");
}

/// A node in a process of its own, which ends with the test whatever comes of it.
struct Child(std::process::Child);

impl Child {
    fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.0.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node that is stopped for longer than its lease and then goes on shows nothing: another one has done the job.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_stopped_for_longer_than_its_lease_is_fenced() {
    if let Ok(place) = std::env::var(STOPPED) {
        let (dir, url) = place.split_once(' ').unwrap();
        return run_until_fenced(Path::new(dir), url).await;
    }
    let Some(server) = Postgres::start() else { return };
    let url = server.new_database("stopped");
    let dir = tempfile::tempdir().unwrap();
    let front = node(dir.path(), "a", &url, 0).await;
    let job = convert(&front, "copy", Some(1 << 20)).await;
    let name = "service::postgres_tests::a_node_that_was_stopped_for_longer_than_its_lease_is_fenced";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(STOPPED, format!("{} {url}", dir.path().display()))
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut child = Child(child.unwrap());
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.0.stdout.take().unwrap()));
    let mut until = |wanted: &str| lines.find(|line| line.as_ref().unwrap() == wanted).unwrap().unwrap();
    until("running");
    child.signal(rustix::process::Signal::STOP);
    let unlimited = UpdateJob {
        rate_limit: Some(0),
        priority: None,
    };
    front.update_job(job.id, unlimited).await.unwrap();
    let back = node(dir.path(), "b", &url, 1).await;
    let done = finish(&front, &job).await;
    assert_eq!((done.state, done.attempt), (JobState::Succeeded, 2), "{:?}", done.error);
    child.signal(rustix::process::Signal::CONT);
    until("let go");
    assert!(child.0.wait().unwrap().success());
    assert_eq!(front.job(job.id).await.unwrap().attempt, 2);
    let files: Vec<_> = std::fs::read_dir(dir.path().join("pool"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(files.len(), 2, "the source and one copy: {files:?}");
    for service in [front, back] {
        service.shutdown(Duration::from_secs(1)).await;
    }
}
