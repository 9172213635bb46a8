//! Uploads whose parts, digests and bases contradict each other.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use common::{Lab, MIB, NONE, body, code, import, json, sample};
use futures::StreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};
use vdisk_service::model::{Image, ImageId, JobState};
use vdisk_service::request::{Checksum, ImportImage, ImportOutcome, ImportSource, UploadPart, UploadStatus};
use vdisk_service::{ErrorCode, Result};

async fn announce(lab: &Lab, request: ImportImage) -> Result<Image> {
    match lab.service.import_image(request, &NONE).await? {
        ImportOutcome::Uploading(image) => Ok(image),
        ImportOutcome::Queued(_) => panic!("an upload was asked for"),
    }
}

fn over(base: ImageId, name: &str) -> ImportImage {
    ImportImage {
        backing: Some(base),
        ..import(name, Some("qcow2"), ImportSource::Upload(true))
    }
}

fn part(offset: usize, length: usize, total: usize) -> UploadPart {
    UploadPart {
        offset: offset as u64,
        length: Some(length as u64),
        total: Some(total as u64),
        ..UploadPart::default()
    }
}

/// An image that waits for its raw file.
async fn raw(lab: &Lab) -> ImageId {
    let request = import("disk", Some("raw"), ImportSource::Upload(true));
    announce(lab, request).await.unwrap().id
}

/// Sends the first 1,000 of these bytes, with the digest of other ones.
async fn begin_with_another_digest(lab: &Lab, image: ImageId, bytes: &[u8]) {
    let first = UploadPart {
        checksum: digest(b"another file"),
        ..part(0, 1000, bytes.len())
    };
    let sent = lab.service.upload(image, first, body(&bytes[..1000], 100)).await;
    sent.unwrap();
}

fn digest(bytes: &[u8]) -> Option<Checksum> {
    Some(Checksum::Sha256(Sha256::digest(bytes).into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_no_longer_than_it_says() {
    let lab = Lab::new().await;
    let bytes = sample(100, 1);
    let image = raw(&lab).await;
    let long = lab.service.upload(image, part(0, 5, 100), body(&bytes[..50], 10)).await;
    assert_eq!(code(long), ErrorCode::LimitExceeded);
    let status = lab.service.upload_status(image).await.unwrap();
    assert!(matches!(status, UploadStatus::Incomplete { received: 0 }), "{status:?}");
}

/// More uploads than there are threads for blocking work, whose clients have stopped sending.
#[test]
fn slow_uploads_keep_no_thread_busy() {
    let threads = 4;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(threads)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let lab = Lab::new().await;
        for number in 0..2 * threads {
            let request = import(&format!("slow-{number}"), Some("raw"), ImportSource::Upload(true));
            let image = announce(&lab, request).await.unwrap().id;
            let (service, (sent, taken)) = (lab.service.clone(), tokio::sync::oneshot::channel());
            let stopped = futures::stream::once(async {
                sent.send(()).unwrap();
                std::future::pending().await
            });
            let stream = Box::pin(body(b"x", 1).chain(stopped));
            tokio::spawn(async move { service.upload(image, part(0, 1000, 1000), stream).await });
            taken.await.unwrap();
        }
        let other = lab.create("other", "qcow2", MIB);
        tokio::time::timeout(Duration::from_secs(20), other).await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_came_with_any_part_is_verified() {
    let lab = Lab::new().await;
    let bytes = sample(3000, 2);
    let image = raw(&lab).await;
    begin_with_another_digest(&lab, image, &bytes).await;
    let contradicting = UploadPart {
        checksum: digest(&bytes),
        ..part(1000, 1000, 3000)
    };
    let refused = lab
        .service
        .upload(image, contradicting, body(&bytes[1000..2000], 100))
        .await;
    assert_eq!(code(refused), ErrorCode::InvalidArgument);
    lab.service
        .upload(image, part(1000, 1000, 3000), body(&bytes[1000..2000], 100))
        .await
        .unwrap();
    let last = lab
        .service
        .upload(image, part(2000, 1000, 3000), body(&bytes[2000..], 100))
        .await;
    assert_eq!(code(last), ErrorCode::ChecksumMismatch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_damaged_on_its_way_is_taken_once_more() {
    let lab = Lab::new().await;
    let bytes = sample(3000, 6);
    let mut damaged = bytes.clone();
    damaged[1700] ^= 1;
    let whole = UploadPart {
        checksum: digest(&bytes),
        ..part(0, 3000, 3000)
    };
    let image = raw(&lab).await;
    for _ in 0..2 {
        assert_eq!(
            code(send(&lab, image, whole, &damaged).await),
            ErrorCode::ChecksumMismatch
        );
        let status = lab.service.upload_status(image).await.unwrap();
        assert!(matches!(status, UploadStatus::Incomplete { received: 0 }), "{status:?}");
        assert!(lab.files().is_empty(), "{:?}", lab.files());
    }
    // What is sent now may be another file, of another length and without a digest.
    send(&lab, image, part(0, 1000, 2500), &bytes).await.unwrap();
    let whole = UploadPart {
        checksum: digest(&bytes),
        ..part(0, 1000, 3000)
    };
    send(&lab, image, whole, &bytes).await.unwrap();
    let last = send(&lab, image, part(1000, 2000, 3000), &bytes).await.unwrap();
    assert!(matches!(last, UploadStatus::Complete(_)), "{last:?}");
    assert!(lab.data(image).await[..3000] == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_starts_anew_forgets_the_digest_of_the_one_before() {
    let lab = Lab::new().await;
    let bytes = sample(2000, 3);
    let image = raw(&lab).await;
    begin_with_another_digest(&lab, image, &bytes).await;
    let whole = lab
        .service
        .upload(image, part(0, 2000, 2000), body(&bytes, 100))
        .await
        .unwrap();
    assert!(matches!(whole, UploadStatus::Complete(_)), "{whole:?}");
}

/// Sends the part of these bytes.
async fn send(lab: &Lab, image: ImageId, part: UploadPart, bytes: &[u8]) -> Result<UploadStatus> {
    let (start, length) = (part.offset as usize, part.length.unwrap() as usize);
    let body = body(&bytes[start..start + length], 100);
    lab.service.upload(image, part, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_parts_agree_on_the_length_of_the_whole() {
    let lab = Lab::new().await;
    let bytes = sample(3072, 4);
    let image = raw(&lab).await;
    send(&lab, image, part(0, 1024, 3072), &bytes).await.unwrap();
    for total in [2048, 4096] {
        let refused = send(&lab, image, part(1024, 1024, total), &bytes).await;
        assert_eq!(code(refused), ErrorCode::InvalidArgument, "{total}");
    }
    // A part that does not say is one of them, and not the last for that.
    let silent = UploadPart {
        total: None,
        ..part(1024, 1024, 0)
    };
    let status = send(&lab, image, silent, &bytes).await.unwrap();
    assert!(
        matches!(status, UploadStatus::Incomplete { received: 2048 }),
        "{status:?}"
    );
    let beyond = UploadPart {
        length: Some(1025),
        ..silent
    };
    let beyond = UploadPart { offset: 2048, ..beyond };
    let refused = lab.service.upload(image, beyond, body(&[0; 1025], 100)).await;
    assert_eq!(code(refused), ErrorCode::InvalidArgument);
    match send(&lab, image, part(2048, 1024, 3072), &bytes).await.unwrap() {
        UploadStatus::Complete(image) => assert_eq!(image.virtual_size, 3072),
        more => panic!("{more:?}"),
    }
    assert!(lab.data(image).await == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_starts_anew_may_have_another_length() {
    let lab = Lab::new().await;
    let bytes = sample(2048, 5);
    let image = raw(&lab).await;
    send(&lab, image, part(0, 1024, 3072), &bytes).await.unwrap();
    let whole = send(&lab, image, part(0, 2048, 2048), &bytes).await.unwrap();
    assert!(matches!(whole, UploadStatus::Complete(_)), "{whole:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_is_not_uploaded_over_a_base_that_a_job_changes() {
    let lab = Lab::new().await;
    let base = lab.create("base", "raw", 8 * MIB).await.id;
    let top = lab.overlay("top", base).await.id;
    if !lab.qemu_io(&top.to_string(), "qcow2", "write -P 2 0 8M") {
        return;
    }
    let request = json(json!({"drop": true, "rate_limit": 1}));
    let job = lab.service.commit_image(top, request, &NONE).await.unwrap();
    lab.until_running(&job).await;
    assert_eq!(code(announce(&lab, over(base, "new")).await), ErrorCode::ImageBusy);
    lab.service.cancel_job(job.id, &NONE).await.unwrap();
    assert_eq!(lab.finish(job).await.state, JobState::Cancelled);
    announce(&lab, over(base, "new")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_that_takes_its_base_for_another_format_is_refused() {
    let lab = Lab::new().await;
    let base = lab.create("base", "qcow2", MIB).await.id;
    let Some(mut qemu_img) = common::tool("qemu-img") else {
        return;
    };
    let file = lab.dir.path().join("overlay");
    let made = qemu_img
        .args(["create", "-q", "-u", "-f", "qcow2", "-b", "base", "-F", "raw"])
        .arg(&file)
        .arg("1M")
        .status();
    assert!(made.unwrap().success());
    let image = announce(&lab, over(base, "new")).await.unwrap();
    let bytes = std::fs::read(file).unwrap();
    let whole = part(0, bytes.len(), bytes.len());
    let refused = lab.service.upload(image.id, whole, body(&bytes, 10_000)).await;
    assert_eq!(code(refused), ErrorCode::FormatMismatch);
}
