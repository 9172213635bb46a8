//! Internal snapshots: which one is meant, requests sent twice, and what a refused change leaves.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use common::{Lab, NONE, code, json, sample, with_key};
use serde_json::json;
use vdisk_service::ErrorCode;
use vdisk_service::model::{ImageId, Snapshot};

/// A qcow2 image with some content.
async fn disk(lab: &Lab) -> ImageId {
    let source = lab.upload("source", Some("raw"), &sample(1 << 20, 11)).await.unwrap();
    let request = json(json!({"name": "disk", "format": "qcow2"}));
    let job = lab.service.convert_image(source.id, request, &NONE).await.unwrap();
    lab.succeed(job).await.result_image_id().unwrap()
}

async fn names(lab: &Lab, image: ImageId) -> Vec<String> {
    let name = |snapshot: Snapshot| snapshot.name;
    lab.service
        .snapshots(image)
        .await
        .unwrap()
        .into_iter()
        .map(name)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_looks_like_an_id_is_a_name() {
    let lab = Lab::new().await;
    let image = disk(&lab).await;
    let before = lab.data(image).await;
    for name in ["3", "two"] {
        lab.service.create_snapshot(image, name, &NONE).await.unwrap();
    }
    let changed = lab.qemu_io(&image.to_string(), "qcow2", "write -P 1 0 64k");
    let third = lab.service.create_snapshot(image, "three", &NONE).await.unwrap();
    assert_eq!(third.id, "3");
    assert_eq!(lab.service.snapshot(image, "3").await.unwrap().id, "1");
    let request = json(json!({"name": "old", "format": "raw", "snapshot": "3"}));
    let job = lab.service.convert_image(image, request, &NONE).await.unwrap();
    let old = lab.succeed(job).await.result_image_id().unwrap();
    assert!(lab.data(old).await == before);
    assert!(!changed || lab.data(image).await != before);
    lab.service.apply_snapshot(image, "3", &NONE).await.unwrap();
    assert!(lab.data(image).await == before);
    lab.service.delete_snapshot(image, "3").await.unwrap();
    assert_eq!(names(&lab, image).await, ["two", "three"]);
    lab.service.delete_snapshot(image, "3").await.unwrap();
    assert_eq!(names(&lab, image).await, ["two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sent_twice_is_carried_out_once() {
    let lab = Lab::new().await;
    let image = disk(&lab).await;
    let (create, apply) = (with_key("create"), with_key("apply"));
    let taken = lab.service.create_snapshot(image, "one", &create).await.unwrap();
    assert_eq!(lab.service.create_snapshot(image, "one", &create).await.unwrap(), taken);
    let other = lab.service.create_snapshot(image, "other", &create).await;
    assert_eq!(code(other), ErrorCode::IdempotencyConflict);
    let applied = lab.service.apply_snapshot(image, "one", &apply).await.unwrap();
    let newer = lab
        .service
        .apply_snapshot(image, "one", &with_key("again"))
        .await
        .unwrap();
    assert_eq!(newer.generation, applied.generation + 1);
    let repeated = lab.service.apply_snapshot(image, "one", &apply).await.unwrap();
    assert_eq!(repeated.generation, newer.generation, "it was applied once more");
    // What was refused may be tried again under the same key.
    let missing = lab.service.apply_snapshot(image, "two", &with_key("two")).await;
    assert_eq!(code(missing), ErrorCode::NotFound);
    lab.service.create_snapshot(image, "two", &NONE).await.unwrap();
    lab.service
        .apply_snapshot(image, "two", &with_key("two"))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_change_leaves_what_is_known_of_the_file() {
    let lab = Lab::new().await;
    let base = disk(&lab).await;
    let overlay = lab.overlay("top", base).await.id;
    assert_eq!(
        code(lab.service.delete_snapshot(base, "none").await),
        ErrorCode::NotFound
    );
    if !lab.qemu_io(&base.to_string(), "qcow2", "write -P 1 0 64k") {
        return;
    }
    assert_eq!(code(lab.service.read_data(overlay, None).await), ErrorCode::BaseChanged);
    // A snapshot of what others wrote would make it ours.
    assert_eq!(
        code(lab.service.create_snapshot(base, "new", &NONE).await),
        ErrorCode::BaseChanged
    );
    assert_eq!(code(lab.service.read_data(overlay, None).await), ErrorCode::BaseChanged);
}
