//! Bytes in and out.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use common::{Lab, MIB, NONE, OVERLAY, body, code, collect, import, json, sample};
use futures::{StreamExt, stream};
use serde_json::json;
use sha2::{Digest, Sha256};
use vdisk_service::model::ImageState;
use vdisk_service::request::{ByteRange, Call, Checksum, ImportOutcome, ImportSource, UploadPart, UploadStatus};
use vdisk_service::{Bytes, ErrorCode};

async fn announce(lab: &Lab, name: &str, format: Option<&str>) -> vdisk_service::model::Image {
    match lab
        .service
        .import_image(import(name, format, ImportSource::Upload(true)), &NONE)
        .await
        .unwrap()
    {
        ImportOutcome::Uploading(image) => image,
        ImportOutcome::Queued(_) => panic!("an upload was asked for"),
    }
}

fn part(offset: u64, length: usize, total: usize) -> UploadPart {
    UploadPart {
        offset,
        length: Some(length as u64),
        total: Some(total as u64),
        ..UploadPart::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_goes_on_where_it_stopped() {
    let lab = Lab::new().await;
    let bytes = sample(3 << 20, 1);
    let image = announce(&lab, "disk", Some("raw")).await;
    assert_eq!(image.state, ImageState::Uploading);
    let broken = stream::iter([Ok(Bytes::copy_from_slice(&bytes[..1_000_000])), Err("connection reset")]);
    let error = lab
        .service
        .upload(image.id, part(0, bytes.len(), bytes.len()), broken)
        .await
        .unwrap_err();
    assert_eq!(
        (error.code, error.range_total),
        (ErrorCode::UploadInterrupted, Some(1_000_000))
    );

    let lab = lab.restart().await;
    let status = lab.service.upload_status(image.id).await.unwrap();
    assert!(matches!(status, UploadStatus::Incomplete { received: 1_000_000 }));
    let wrong = lab
        .service
        .upload(image.id, part(5, 10, bytes.len()), body(&bytes[5..15], 10))
        .await
        .unwrap_err();
    assert_eq!(
        (wrong.code, wrong.range_total),
        (ErrorCode::UploadOffsetMismatch, Some(1_000_000))
    );
    let middle = part(1_000_000, 500_000, bytes.len());
    let status = lab
        .service
        .upload(image.id, middle, body(&bytes[1_000_000..1_500_000], 4096))
        .await
        .unwrap();
    assert!(matches!(status, UploadStatus::Incomplete { received: 1_500_000 }));
    let digest = Checksum::Sha256(Sha256::digest(&bytes).into());
    let last = UploadPart {
        checksum: Some(digest),
        ..part(1_500_000, bytes.len() - 1_500_000, bytes.len())
    };
    let status = lab
        .service
        .upload(image.id, last, body(&bytes[1_500_000..], 70_000))
        .await
        .unwrap();
    let UploadStatus::Complete(done) = status else {
        panic!("{status:?}")
    };
    assert_eq!(
        (done.state, done.virtual_size, done.generation),
        (ImageState::Ready, 3 * MIB, 1)
    );
    assert!(lab.data(image.id).await == bytes);
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_bytes_that_are_gone_do_not_become_zeroes() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 1);
    let image = announce(&lab, "disk", Some("raw")).await;
    let first = part(0, 600_000, bytes.len());
    lab.service
        .upload(image.id, first, body(&bytes[..600_000], 4096))
        .await
        .unwrap();
    std::fs::remove_file(lab.pool().join(format!(".{}.upload", image.id))).unwrap();
    let rest = part(600_000, bytes.len() - 600_000, bytes.len());
    let error = lab
        .service
        .upload(image.id, rest, body(&bytes[600_000..], 4096))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code, error.range_total),
        (ErrorCode::UploadOffsetMismatch, Some(0))
    );
    let anew = part(0, bytes.len(), bytes.len());
    lab.service.upload(image.id, anew, body(&bytes, 70_000)).await.unwrap();
    assert!(lab.data(image.id).await == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_counts_even_when_the_request_is_dropped() {
    let lab = Lab::new().await;
    let image = announce(&lab, "disk", Some("raw")).await;
    let first = stream::iter([Ok::<_, String>(Bytes::from(vec![7; 5000]))]);
    let stuck = first.chain(stream::pending());
    let upload = lab.service.upload(image.id, part(0, 10_000, 10_000), stuck);
    assert!(
        tokio::time::timeout(std::time::Duration::from_millis(300), upload)
            .await
            .is_err()
    );
    for _ in 0..5_000 {
        if matches!(
            lab.service.upload_status(image.id).await.unwrap(),
            UploadStatus::Incomplete { received: 5000 }
        ) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let rest = lab
        .service
        .upload(image.id, part(5000, 5000, 10_000), body(&[7; 5000], 999))
        .await
        .unwrap();
    assert!(matches!(rest, UploadStatus::Complete(_)));
    assert!(lab.data(image.id).await[..10_000] == [7; 10_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_checksum_makes_no_image() {
    let lab = Lab::new().await;
    let image = announce(&lab, "disk", Some("raw")).await;
    let wrong = UploadPart {
        checksum: Some(Checksum::Sha256([0; 32])),
        ..part(0, 3, 3)
    };
    assert_eq!(
        code(lab.service.upload(image.id, wrong, body(b"abc", 3)).await),
        ErrorCode::ChecksumMismatch
    );
    assert_eq!(lab.service.image(image.id).await.unwrap().state, ImageState::Uploading);
    assert_eq!(
        code(lab.service.read_data(image.id, None).await),
        ErrorCode::ImageNotReady
    );
    assert!(lab.files().is_empty());
    lab.service.delete_image(image.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_announced_bounds_what_is_stored() {
    let lab = Lab::with(|config| config.limits.upload_bytes = 1000).await;
    let image = announce(&lab, "disk", Some("raw")).await;
    assert_eq!(
        code(lab.service.upload(image.id, part(0, 2000, 2000), body(b"x", 1)).await),
        ErrorCode::LimitExceeded
    );
    let endless = stream::repeat_with(|| Ok::<_, String>(Bytes::from_static(&[0; 100])));
    let unknown = UploadPart::default();
    assert_eq!(
        code(lab.service.upload(image.id, unknown, endless).await),
        ErrorCode::LimitExceeded
    );
    let short = lab.service.upload(image.id, part(0, 10, 10), body(b"12345", 5)).await;
    assert_eq!(code(short), ErrorCode::UploadInterrupted);
}

#[tokio::test(flavor = "multi_thread")]
async fn formats_are_detected_and_claims_are_checked() {
    let lab = Lab::new().await;
    let made = lab.create("made", OVERLAY, MIB).await;
    let file = collect(lab.service.read_file(made.id, None).await.unwrap().body).await;
    let found = lab.upload("found", None, &file).await.unwrap();
    assert_eq!((found.format.as_str(), found.virtual_size), (OVERLAY, MIB));
    let raw = lab.upload("raw", None, &sample(4096, 1)).await.unwrap();
    assert_eq!(raw.format, "raw");
    assert_eq!(
        code(lab.upload("a", Some("raw"), &file).await),
        ErrorCode::FormatMismatch
    );
    assert_eq!(
        code(lab.upload("b", Some(OVERLAY), &sample(4096, 1)).await),
        ErrorCode::FormatMismatch
    );
    assert_eq!(
        code(lab.upload("c", Some("nonsense"), b"").await),
        ErrorCode::Unsupported
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uploaded_overlay_needs_its_base_named() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 2);
    let base = lab.upload("base", Some("raw"), &bytes).await.unwrap();
    let overlay = lab.overlay("overlay", base.id).await;
    let file = collect(lab.service.read_file(overlay.id, None).await.unwrap().body).await;
    assert_eq!(code(lab.upload("stray", None, &file).await), ErrorCode::Denied);
    let mut request = import("named", Some(OVERLAY), ImportSource::Upload(true));
    request.backing = Some(base.id);
    let ImportOutcome::Uploading(image) = lab.service.import_image(request, &NONE).await.unwrap() else {
        panic!()
    };
    lab.service
        .upload(image.id, part(0, file.len(), file.len()), body(&file, 9999))
        .await
        .unwrap();
    assert!(lab.data(image.id).await == bytes);
    assert_eq!(
        code(lab.service.delete_image(base.id).await),
        ErrorCode::ConflictDependents
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_file_and_data_are_served() {
    let lab = Lab::new().await;
    let bytes = sample(3 << 20, 3);
    let base = lab.upload("base", Some("raw"), &bytes).await.unwrap();
    let overlay = lab.overlay("overlay", base.id).await;
    let range = ByteRange::From {
        first: 1_234_567,
        last: Some(2_345_678),
    };
    for id in [base.id, overlay.id] {
        let download = lab.service.read_data(id, Some(range)).await.unwrap();
        assert_eq!(
            (download.offset, download.length, download.total),
            (1_234_567, 1_111_112, 3 * MIB)
        );
        assert!(collect(download.body).await == bytes[1_234_567..=2_345_678]);
    }
    let tail = lab.service.read_file(base.id, Some(ByteRange::Last(10))).await.unwrap();
    assert!(collect(tail.body).await == bytes[bytes.len() - 10..]);
    let outside = ByteRange::From {
        first: 3 * MIB,
        last: None,
    };
    let error = lab.service.read_data(base.id, Some(outside)).await.err().unwrap();
    assert_eq!(
        (error.code, error.range_total),
        (ErrorCode::RangeNotSatisfiable, Some(3 * MIB))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_not_changed_while_it_is_read() {
    let lab = Lab::new().await;
    let image = lab.upload("disk", Some("raw"), &sample(8 << 20, 4)).await.unwrap();
    let mut download = lab.service.read_data(image.id, None).await.unwrap().body;
    download.next().await.unwrap().unwrap();
    let grow = || json(json!({"virtual_size": 16 * MIB}));
    assert_eq!(
        code(lab.service.resize_image(image.id, grow(), &NONE).await),
        ErrorCode::ImageBusy
    );
    drop(download);
    let mut queued = lab.service.resize_image(image.id, grow(), &NONE).await;
    for _ in 0..5_000 {
        if queued.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        queued = lab.service.resize_image(image.id, grow(), &NONE).await;
    }
    lab.succeed(queued.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_stored_and_never_shown() {
    let lab = Lab::new().await;
    let call = Call {
        idempotency_key: Some("s".to_owned()),
    };
    let request = || json(json!({"name": "key", "value": "canary-7f3a9c"}));
    let secret = lab.service.create_secret(request(), &call).await.unwrap();
    assert_eq!(lab.service.create_secret(request(), &call).await.unwrap(), secret);
    let other = json(json!({"name": "key", "value": "another"}));
    assert_eq!(
        code(lab.service.create_secret(other, &call).await),
        ErrorCode::IdempotencyConflict
    );
    assert_eq!(
        code(lab.service.create_secret(request(), &NONE).await),
        ErrorCode::NameTaken
    );
    assert!(
        !serde_json::to_string(&lab.service.secret(secret.id).await.unwrap())
            .unwrap()
            .contains("canary")
    );
    lab.service.shutdown(std::time::Duration::from_secs(1)).await;
    for entry in std::fs::read_dir(lab.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            assert!(
                !bytes.windows(6).any(|window| window == b"canary"),
                "{}",
                path.display()
            );
        }
    }
}
