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
    let mut config = ServiceConfig::new(dir.join(name));
    config.database_url = Some(url.to_owned());
    config.pools.insert("default".to_owned(), dir.join("pool"));
    config.master_key = Some(MasterKey(Zeroizing::new([1; 32])));
    config.workers = workers;
    config.lease = Duration::from_secs(2);
    config.heartbeat = Duration::from_millis(300);
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
            let request = json!({"name": "source", "format": "raw", "virtual_size": 8 << 20});
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
        .wait_job(job.id, WaitUntil::Finished, Duration::from_secs(30))
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
