//! Reads that meet a change: what is on record when the locks are taken is what counts.

use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::config::ServiceConfig;
use crate::error::ErrorCode;
use crate::model::Image;
use crate::request::Call;
use crate::service::Service;
use crate::store::images::FileFacts;

async fn service_with_an_image() -> (TempDir, Service, Image) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ServiceConfig::new(dir.path());
    config.ballast_bytes = 0;
    let service = Service::open(config).await.unwrap();
    let request = json!({"name": "disk", "format": "raw", "virtual_size": 1 << 20});
    let request = serde_json::from_value(request).unwrap();
    let image = service.create_image(request, &Call::default()).await.unwrap();
    (dir, service, image)
}

/// Long enough for a read to get as far as it can without the writer's turn.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_waits_for_a_change_shows_it_under_its_new_etag() {
    let (_dir, service, image) = service_with_an_image().await;
    let before = service.read_data(image.id, None).await.unwrap().etag;
    let change = async {
        let mut tx = service.inner.store.begin().await.unwrap();
        let (file, data) = (service.clone(), service.clone());
        let file = tokio::spawn(async move { file.read_file(image.id, None).await });
        let data = tokio::spawn(async move { data.read_data(image.id, None).await });
        a_moment().await;
        let facts = FileFacts {
            format: "raw".to_owned(),
            virtual_size: 1 << 20,
            ..FileFacts::default()
        };
        tx.record_change(image.id, &facts, true).await.unwrap();
        tx.commit().await.unwrap();
        (file, data)
    };
    let (file, data) = change.await;
    assert_ne!(file.await.unwrap().unwrap().etag, before);
    assert_ne!(data.await.unwrap().unwrap().etag, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_waits_for_a_deletion_finds_no_image() {
    let (_dir, service, image) = service_with_an_image().await;
    let mut tx = service.inner.store.begin().await.unwrap();
    let (file, data) = (service.clone(), service.clone());
    let file = tokio::spawn(async move { file.read_file(image.id, None).await });
    let data = tokio::spawn(async move { data.read_data(image.id, None).await });
    a_moment().await;
    tx.delete_image(image.id).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(file.await.unwrap().err().unwrap().code, ErrorCode::NotFound);
    assert_eq!(data.await.unwrap().err().unwrap().code, ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_waits_for_nothing_that_does_not_end() {
    let (_dir, service, _) = service_with_an_image().await;
    // A worker that does not hear, and a request that keeps the database to itself.
    super::lock(&service.inner.tasks).push(tokio::spawn(std::future::pending()));
    let _tx = service.inner.store.begin().await.unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(30), service.shutdown(Duration::from_millis(100)));
    stopped.await.expect("it goes on waiting");
}
