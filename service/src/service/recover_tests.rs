//! A start beside processes that go on: what it saw a moment ago is not what it acts on.

use std::fs::File;

use serde_json::json;
use uuid::Uuid;
use vdisk_engine::storage::{FileOptions, FileStorage};

use super::Service;
use super::test_service::service_with_an_image;
use crate::Bytes;
use crate::disk::file_stamp;
use crate::fault::Step;
use crate::jobs::close_abandoned;
use crate::model::ImageState;
use crate::queue::{Seen, bring_in_line};
use crate::request::{Call, ImportOutcome, UploadPart};
use crate::store::images::ImageRecord;

/// Brings the pool in line as another node would that saw this.
async fn as_another_node(service: &Service, seen: &Seen) {
    let pool = service.inner.pool("default").unwrap();
    bring_in_line(&service.inner, &pool, seen, false).await.unwrap();
}

async fn look(service: &Service) -> Seen {
    let pool = service.inner.pool("default").unwrap();
    Seen::look(&service.inner, &pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_began_after_the_records_were_read_stays() {
    let (dir, service, _) = service_with_an_image().await;
    let before = look(&service).await;
    let request = json!({"name": "new", "format": "raw", "source": {"upload": true}});
    let request = serde_json::from_value(request).unwrap();
    let outcome = service.import_image(request, &Call::default()).await.unwrap();
    let ImportOutcome::Uploading(image) = outcome else {
        panic!("an upload was asked for")
    };
    let part = UploadPart {
        length: Some(512),
        total: Some(1024),
        ..UploadPart::default()
    };
    let body = futures::stream::iter([Ok::<_, String>(Bytes::from_static(&[7; 512]))]);
    service.upload(image.id, part, body).await.unwrap();
    let seen = Seen {
        names: look(&service).await.names,
        ..before
    };
    as_another_node(&service, &seen).await;
    let file = dir.path().join(format!("pools/default/.{}.upload", image.id));
    assert_eq!(std::fs::read(file).unwrap(), [7; 512]);
}

/// What a record said before the image was complete, whoever was making it.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_completed_after_the_records_were_read_stays() {
    let (dir, service, image) = service_with_an_image().await;
    let earlier: [fn(&mut ImageRecord); 3] = [
        |record| record.reserved_by = Some(Uuid::now_v7().to_string()),
        |record| record.image.state = ImageState::Uploading,
        |record| "another-file".clone_into(&mut record.file),
    ];
    for change in earlier {
        let mut seen = look(&service).await;
        seen.records.iter_mut().for_each(change);
        as_another_node(&service, &seen).await;
        assert_eq!(service.image(image.id).await.unwrap().state, ImageState::Ready);
        assert!(dir.path().join(format!("pools/default/{}", image.id)).exists());
    }
}

/// What a request that died had begun to change: the file may be as it was, as the dead left it, or a guest's by now.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_nobody_goes_on_with_is_put_on_record() {
    let (dir, service, image) = service_with_an_image().await;
    let path = dir.path().join(format!("pools/default/{}", image.id));
    let inner = &service.inner;
    let stamp = async || inner.store.image(image.id).await.unwrap().file_stamp.unwrap();
    let die = async || {
        let mut tx = inner.store.begin().await.unwrap();
        tx.open_change(image.id).await.unwrap();
        tx.commit_as(Step::PrepareChanges).await.unwrap();
        assert_eq!(inner.store.image(image.id).await.unwrap().file_stamp, None);
    };
    let found = || file_stamp(&rustix::fs::stat(&path).unwrap());
    let before = stamp().await;
    die().await;
    close_abandoned(inner).await.unwrap();
    assert_eq!(stamp().await, before);

    die().await;
    std::fs::write(&path, [1; 512]).unwrap();
    close_abandoned(inner).await.unwrap();
    assert_eq!(stamp().await, found());

    die().await;
    let left = found();
    std::fs::write(&path, [2; 1024]).unwrap();
    let guest = File::options().read(true).write(true).open(&path).unwrap();
    let guest = FileStorage::from_file(guest, "disk", FileOptions::write()).unwrap();
    close_abandoned(inner).await.unwrap();
    drop(guest);
    assert_eq!(stamp().await, left, "who cannot look does not take it for ours");
}
