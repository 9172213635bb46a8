//! A start beside processes that go on: what it saw a moment ago is not what it acts on.

use serde_json::json;
use uuid::Uuid;

use super::Service;
use super::test_service::service_with_an_image;
use crate::Bytes;
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
