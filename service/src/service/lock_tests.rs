//! Requests whose locks were taken away while their process stood still: what they did counts no more.

use futures::{Stream, stream};
use serde_json::json;
use tokio::sync::mpsc;

use super::Service;
use super::locks::RequestLocks;
use super::test_service::service;
use crate::Bytes;
use crate::error::{ErrorCode, Result};
use crate::model::ImageId;
use crate::request::{Call, ImportOutcome, UploadPart, UploadStatus};
use crate::store::locks::LockMode;

async fn waiting_for_its_file(service: &Service) -> ImageId {
    let request = json!({"name": "disk", "format": "raw", "source": {"upload": true}});
    let request = serde_json::from_value(request).unwrap();
    match service.import_image(request, &Call::default()).await.unwrap() {
        ImportOutcome::Uploading(image) => image.id,
        ImportOutcome::Queued(job) => panic!("{job:?}"),
    }
}

/// As another process does when it wants the image and the time of the locks is over.
async fn take_away(service: &Service) {
    let mut tx = service.inner.store.begin().await.unwrap();
    tx.drop_all_request_locks().await.unwrap();
    tx.commit().await.unwrap();
}

fn fed(bytes: mpsc::Receiver<Bytes>) -> impl Stream<Item = Result<Bytes, String>> + Send + Unpin {
    let next = |mut bytes: mpsc::Receiver<Bytes>| async move { bytes.recv().await.map(|piece| (Ok(piece), bytes)) };
    Box::pin(stream::unfold(bytes, next))
}

fn whole(bytes: &[u8]) -> UploadPart {
    UploadPart {
        length: Some(bytes.len() as u64),
        total: Some(bytes.len() as u64),
        ..UploadPart::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_lost_its_locks_is_not_recorded_and_nobody_else_writes_meanwhile() {
    let (dir, service) = service().await;
    let image = waiting_for_its_file(&service).await;
    let (lost, good) = ([1_u8; 1024], [2_u8; 1024]);
    let (pieces, body) = mpsc::channel(1);
    let (first, part) = (service.clone(), whole(&lost));
    let first = tokio::spawn(async move { first.upload(image, part, fed(body)).await });
    pieces.send(Bytes::copy_from_slice(&lost[..512])).await.unwrap();
    let file = dir.path().join(format!("pools/default/.{image}.upload"));
    while !file.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    take_away(&service).await;

    let again = async || {
        let body = stream::iter([Ok::<_, String>(Bytes::copy_from_slice(&good))]);
        service.upload(image, whole(&good), body).await
    };
    assert_eq!(again().await.unwrap_err().code, ErrorCode::ImageBusy);
    pieces.send(Bytes::copy_from_slice(&lost[512..])).await.unwrap();
    drop(pieces);
    assert_eq!(first.await.unwrap().unwrap_err().code, ErrorCode::LeaseLost);
    let status = service.upload_status(image).await.unwrap();
    assert!(matches!(status, UploadStatus::Incomplete { received: 0 }), "{status:?}");
    let status = again().await.unwrap();
    assert!(matches!(status, UploadStatus::Complete(_)), "{status:?}");
    let stored = std::fs::read(dir.path().join(format!("pools/default/{image}"))).unwrap();
    assert!(stored == good);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_recorded_under_locks_that_were_taken_away() {
    let (_dir, service) = service().await;
    let image = waiting_for_its_file(&service).await;
    let locks = RequestLocks::new(&service.inner);
    let mut tx = service.inner.store.begin().await.unwrap();
    locks.take(&mut tx, &[(image, LockMode::Exclusive)]).await.unwrap();
    tx.commit().await.unwrap();
    drop(locks.begin().await.unwrap());
    take_away(&service).await;
    assert_eq!(locks.begin().await.err().unwrap().code, ErrorCode::LeaseLost);
}
