//! Whose the folder of a pool is, and whether it is the right one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::XattrFlags;
use serde_json::json;

use super::Service;
use super::test_service::an_image;
use crate::Bytes;
use crate::config::ServiceConfig;
use crate::error::{ErrorCode, Result};
use crate::model::{Image, ImageState};
use crate::pool::OWNER;
use crate::request::{Call, ImportOutcome, UploadPart};

async fn open(dir: &Path, data: &str) -> Result<Service> {
    let mut config = ServiceConfig::new(dir.join(data));
    config.pools.insert("default".to_owned(), dir.join("pool"));
    config.ballast_bytes = 0;
    Service::open(config).await
}

async fn with_an_image(dir: &Path) -> (Service, Image) {
    let service = open(dir, "data").await.unwrap();
    let image = an_image(&service).await;
    (service, image)
}

async fn stop(service: Service) {
    service.shutdown(Duration::from_secs(5)).await;
}

/// Refused, with a text that says what to do.
async fn assert_refused(dir: &Path, data: &str, advice: &[&str]) {
    let error = open(dir, data).await.err().expect("it started");
    assert_eq!(error.code, ErrorCode::Unavailable);
    let text = error.to_string();
    assert!(advice.iter().all(|word| text.contains(word)), "{text}");
}

/// Whether this file system can say whose a folder is.
fn has_marks(dir: &Path) -> bool {
    let has = rustix::fs::setxattr(dir, "user.vdiskd.test", b"1", XattrFlags::empty()).is_ok();
    if !has {
        eprintln!("skipped: the file system keeps no attributes");
    }
    has
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_another_database_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    if !has_marks(dir.path()) {
        return;
    }
    let pool = dir.path().join("pool");
    let (service, image) = with_an_image(dir.path()).await;
    let request = json!({"name": "new", "format": "raw", "source": {"upload": true}});
    let request = serde_json::from_value(request).unwrap();
    let outcome = service.import_image(request, &Call::default()).await.unwrap();
    let ImportOutcome::Uploading(upload) = outcome else {
        panic!("an upload was asked for")
    };
    let part = UploadPart {
        total: Some(1024),
        ..UploadPart::default()
    };
    let body = futures::stream::iter([Ok::<_, String>(Bytes::from_static(&[7; 512]))]);
    service.upload(upload.id, part, body).await.unwrap();
    let before = names(&pool);
    assert_refused(dir.path(), "other", &["another database", OWNER]).await;
    assert_eq!(names(&pool), before);
    stop(service).await;

    // Its database is lost: the folder is given to another one.
    rustix::fs::removexattr(&pool, OWNER).unwrap();
    stop(open(dir.path(), "other").await.unwrap()).await;
    assert!(pool.join(image.id.to_string()).exists());
    assert_refused(dir.path(), "data", &["another database"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_from_before_there_were_owners_gets_one() {
    let dir = tempfile::tempdir().unwrap();
    if !has_marks(dir.path()) {
        return;
    }
    let pool = dir.path().join("pool");
    let (service, image) = with_an_image(dir.path()).await;
    stop(service).await;
    rustix::fs::removexattr(&pool, OWNER).unwrap();
    let service = open(dir.path(), "data").await.unwrap();
    assert_eq!(service.image(image.id).await.unwrap().state, ImageState::Ready);
    let mut id = [0; 36];
    rustix::fs::getxattr(&pool, OWNER, &mut id[..]).unwrap();
    assert_eq!(service.inner.store.id().to_string().as_bytes(), id);
    stop(service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_whose_disk_is_not_mounted_is_not_taken_for_the_pool() {
    let dir = tempfile::tempdir().unwrap();
    if !has_marks(dir.path()) {
        return;
    }
    let (pool, unmounted) = (dir.path().join("pool"), dir.path().join("unmounted"));
    let (service, image) = with_an_image(dir.path()).await;
    let id = service.inner.store.id();
    stop(service).await;
    std::fs::rename(&pool, &unmounted).unwrap();
    assert_refused(dir.path(), "data", &["mounted", &id.to_string(), OWNER]).await;
    assert_eq!(names(&pool), Vec::<PathBuf>::new());

    // The files are gone for good, says the operator, and is mistaken.
    rustix::fs::setxattr(&pool, OWNER, id.to_string().as_bytes(), XattrFlags::CREATE).unwrap();
    let service = open(dir.path(), "data").await.unwrap();
    assert_eq!(service.image(image.id).await.unwrap().state, ImageState::Missing);
    stop(service).await;
    std::fs::remove_dir_all(&pool).unwrap();
    std::fs::rename(&unmounted, &pool).unwrap();
    let service = open(dir.path(), "data").await.unwrap();
    assert_eq!(service.image(image.id).await.unwrap().state, ImageState::Ready);
    stop(service).await;
}
