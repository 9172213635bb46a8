//! Reads that meet a change: what is on record when the locks are taken is what counts.

use std::time::Duration;

use serde_json::json;
use vdisk_engine::Control;

use crate::disk::Layer;
use crate::error::{ErrorCode, Result};
use crate::request::MapRequest;
use crate::service::test_service::service_with_an_image;
use crate::store::images::FileFacts;

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
async fn a_look_ends_when_nobody_waits_for_it() {
    let (_dir, service, image) = service_with_an_image().await;
    let (told, tells) = std::sync::mpsc::channel();
    let work = move |_: &[Layer], control: &Control| -> Result<()> {
        loop {
            if let Err(error) = control.check_cancelled() {
                let _ = told.send(());
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let looking = tokio::time::timeout(Duration::from_millis(200), service.look(image.id, false, work));
    assert!(looking.await.is_err(), "it ended by itself");
    tells.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_and_measurements_take_places_of_downloads() {
    let (_dir, service, image) = service_with_an_image().await;
    let measure = || serde_json::from_value(json!({"format": "raw"})).unwrap();
    let all = MapRequest::default();
    service.image_map(image.id, &all).await.unwrap();
    service.measure_image(image.id, measure()).await.unwrap();
    let taken = service.inner.places.clone().acquire_many_owned(256).await.unwrap();
    let refused = service.image_map(image.id, &all).await.err().unwrap();
    assert_eq!(refused.code, ErrorCode::Unavailable);
    let refused = service.measure_image(image.id, measure()).await.err().unwrap();
    assert_eq!(refused.code, ErrorCode::Unavailable);
    drop(taken);
    service.image_map(image.id, &all).await.unwrap();
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
