//! Every kind of job, from the request to the bytes.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use common::{Lab, MIB, NONE, OVERLAY, code, json, sample};
use futures::StreamExt;
use serde_json::json;
use vdisk_service::ErrorCode;
use vdisk_service::request::{ImportSource, MapRequest};

#[tokio::test(flavor = "multi_thread")]
async fn convert_makes_an_equal_image() {
    let lab = Lab::new().await;
    let bytes = sample(5 << 20, 1);
    let source = lab.upload("source", Some("raw"), &bytes).await.unwrap();
    let request = json(json!({"name": "copy", "format": OVERLAY}));
    let job = lab.service.convert_image(source.id, request, &NONE).await.unwrap();
    let job = lab.succeed(job).await;
    let copy = job.result_image_id().unwrap();
    assert_eq!(job.progress.done_bytes, 5 * MIB);
    assert!(!job.steps.is_empty() && job.started_at.is_some() && job.finished_at.is_some());
    assert!(lab.data(copy).await == bytes);
    let compare = lab
        .service
        .compare_images(source.id, json(json!({"other": copy})), &NONE)
        .await
        .unwrap();
    assert_eq!(lab.succeed(compare).await.result.unwrap()["identical"], true);
    let check = lab.service.check_image(copy, json(json!({})), &NONE).await.unwrap();
    assert_eq!(lab.succeed(check).await.result.unwrap()["clean"], true);
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn converting_onto_a_base_stores_the_difference() {
    let lab = Lab::new().await;
    let bytes = sample(4 << 20, 2);
    let mut changed = bytes.clone();
    changed[MIB as usize + 5] ^= 1;
    changed[3 << 20..(3 << 20) + (128 << 10)].fill(0);
    let base = lab.upload("base", Some("raw"), &bytes).await.unwrap();
    let source = lab.upload("source", Some("raw"), &changed).await.unwrap();
    let request = json(json!({"name": "delta", "format": OVERLAY, "backing": base.id}));
    let job = lab.service.convert_image(source.id, request, &NONE).await.unwrap();
    let delta = lab.succeed(job).await.result_image_id().unwrap();
    assert!(lab.data(delta).await == changed);
    let image = lab.service.image(delta).await.unwrap();
    assert_eq!(image.backing_id, Some(base.id));
    assert!(
        image.allocated_size < MIB,
        "{} bytes for a small difference",
        image.allocated_size
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rebase_flatten_and_commit_keep_the_content() {
    let lab = Lab::new().await;
    let bytes = sample(2 << 20, 3);
    let base = lab.upload("base", Some("raw"), &bytes).await.unwrap();
    let other = lab.upload("other", Some("raw"), &sample(1 << 20, 4)).await.unwrap();
    let overlay = lab.overlay("overlay", base.id).await;
    if !lab.qemu_io(&overlay.id.to_string(), OVERLAY, "write -P 7 100k 70k") {
        return;
    }
    let mut expected = bytes.clone();
    expected[100 << 10..170 << 10].fill(7);
    assert!(lab.data(overlay.id).await == expected);

    let rebase = json(json!({"backing": other.id}));
    let job = lab.service.rebase_image(overlay.id, rebase, &NONE).await.unwrap();
    lab.succeed(job).await;
    assert!(lab.data(overlay.id).await == expected);
    assert_eq!(lab.service.image(overlay.id).await.unwrap().backing_id, Some(other.id));
    lab.service.delete_image(base.id).await.unwrap();

    let job = lab
        .service
        .commit_image(overlay.id, json(json!({})), &NONE)
        .await
        .unwrap();
    assert_eq!(lab.succeed(job).await.result_image_id(), Some(other.id));
    assert!(lab.data(other.id).await == expected);
    assert!(lab.data(overlay.id).await == expected);

    let job = lab
        .service
        .flatten_image(overlay.id, json(json!({})), &NONE)
        .await
        .unwrap();
    lab.succeed(job).await;
    assert_eq!(lab.service.image(overlay.id).await.unwrap().backing_id, None);
    assert!(lab.data(overlay.id).await == expected);
    lab.service.delete_image(other.id).await.unwrap();
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_overlay_can_be_dropped() {
    let lab = Lab::new().await;
    let base = lab.create("base", "raw", MIB).await;
    let overlay = lab.overlay("overlay", base.id).await;
    let top = lab.overlay("top", overlay.id).await;
    let refused = lab
        .service
        .commit_image(overlay.id, json(json!({"drop": true})), &NONE)
        .await;
    assert_eq!(code(refused), ErrorCode::ConflictDependents);
    lab.qemu_io(&top.id.to_string(), OVERLAY, "write -P 9 0 4k");
    let expected = lab.data(top.id).await;
    let through = json(json!({"base": base.id, "drop": true}));
    let job = lab.service.commit_image(top.id, through, &NONE).await.unwrap();
    lab.succeed(job).await;
    assert!(lab.data(base.id).await == expected);
    assert_eq!(code(lab.service.image(top.id).await), ErrorCode::NotFound);
    assert_eq!(code(lab.service.image(overlay.id).await), ErrorCode::NotFound);
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_with_other_overlays_takes_no_commit() {
    let lab = Lab::new().await;
    let base = lab.create("base", "raw", MIB).await;
    let overlay = lab.overlay("overlay", base.id).await;
    let sibling = lab.overlay("sibling", base.id).await;
    let refused = lab
        .service
        .commit_image(overlay.id, json(json!({})), &NONE)
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code, refused.dependents),
        (ErrorCode::ConflictDependents, vec![sibling.id])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_never_contains_itself() {
    let lab = Lab::new().await;
    let base = lab.create("base", OVERLAY, MIB).await;
    let overlay = lab.overlay("overlay", base.id).await;
    for backing in [overlay.id, base.id] {
        let refused = lab
            .service
            .rebase_image(base.id, json(json!({"backing": backing})), &NONE)
            .await;
        assert_eq!(code(refused), ErrorCode::ConflictCycle);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resize_grows_and_hides_a_longer_base() {
    let lab = Lab::new().await;
    let bytes = vec![5; 2 << 20];
    let base = lab.upload("base", Some("raw"), &bytes).await.unwrap();
    let mut request = common::new_image("overlay", OVERLAY, Some(MIB), Some(base.id));
    request.labels.insert("k".to_owned(), "v".to_owned());
    let overlay = lab.service.create_image(request, &NONE).await.unwrap();
    assert!(lab.data(overlay.id).await == bytes[..1 << 20]);
    let job = lab
        .service
        .resize_image(overlay.id, json(json!({"virtual_size": 3 * MIB})), &NONE)
        .await
        .unwrap();
    lab.succeed(job).await;
    let data = lab.data(overlay.id).await;
    assert_eq!(data.len(), 3 << 20);
    assert!(data[..1 << 20] == bytes[..1 << 20]);
    assert!(
        data[1 << 20..].iter().all(|byte| *byte == 0),
        "the base shows through the new part"
    );
    let shrink = lab
        .service
        .resize_image(base.id, json(json!({"virtual_size": 0})), &NONE)
        .await;
    assert_eq!(code(shrink), ErrorCode::ConflictDependents);
}

#[tokio::test(flavor = "multi_thread")]
async fn shrinking_needs_permission() {
    let lab = Lab::new().await;
    let image = lab.create("disk", "raw", 2 * MIB).await;
    let refused = lab
        .service
        .resize_image(image.id, json(json!({"virtual_size": MIB})), &NONE)
        .await;
    assert_eq!(code(refused), ErrorCode::InvalidArgument);
    let request = json(json!({"virtual_size": MIB, "shrink": true}));
    let job = lab.service.resize_image(image.id, request, &NONE).await.unwrap();
    lab.succeed(job).await;
    let image = lab.service.image(image.id).await.unwrap();
    assert_eq!((image.virtual_size, image.generation), (MIB, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn compress_rewrites_in_place() {
    let lab = Lab::new().await;
    let bytes = sample(4 << 20, 6);
    let source = lab.upload("source", Some("raw"), &bytes).await.unwrap();
    for algorithm in ["zlib", "zstd"] {
        let request = json(json!({"name": algorithm, "format": "qcow2"}));
        let job = lab.service.convert_image(source.id, request, &NONE).await.unwrap();
        let image = lab.succeed(job).await.result_image_id().unwrap();
        let before = lab.service.image(image).await.unwrap();
        let request = json(json!({"algorithm": algorithm}));
        let job = lab.service.compress_image(image, request, &NONE).await.unwrap();
        lab.succeed(job).await;
        let after = lab.service.image(image).await.unwrap();
        assert!(after.allocated_size < before.allocated_size, "{algorithm}");
        assert_eq!(after.generation, before.generation);
        assert!(lab.data(image).await == bytes);
        let info = lab.service.image_info(image).await.unwrap();
        assert_eq!(info["format-specific"]["data"]["compression-type"], algorithm);
    }
    let refused = lab
        .service
        .compress_image(source.id, json(json!({"algorithm": "zlib"})), &NONE)
        .await;
    assert_eq!(code(refused), ErrorCode::Unsupported);
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compress_leaves_a_disk_to_those_who_may_use_it() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let lab = Lab::new().await;
    let image = lab.create("disk", "qcow2", MIB).await.id;
    let file = lab.pool().join(image.to_string());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    // A hypervisor's; only root can give it away.
    let _ = chown(&file, Some(101), Some(104));
    let before = std::fs::metadata(&file).unwrap();
    let request = json(json!({"algorithm": "zlib"}));
    let job = lab.service.compress_image(image, request, &NONE).await.unwrap();
    lab.succeed(job).await;
    let after = std::fs::metadata(&file).unwrap();
    assert_ne!(after.ino(), before.ino(), "another file");
    assert_eq!(
        (after.mode(), after.uid(), after.gid()),
        (before.mode(), before.uid(), before.gid())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_taken_applied_and_deleted() {
    let lab = Lab::new().await;
    let source = lab.upload("source", Some("raw"), &sample(1 << 20, 11)).await.unwrap();
    let request = json(json!({"name": "disk", "format": "qcow2"}));
    let job = lab.service.convert_image(source.id, request, &NONE).await.unwrap();
    let image = lab.succeed(job).await.result_image_id().unwrap();
    let before = lab.data(image).await;
    let taken = lab.service.create_snapshot(image, "before", &NONE).await.unwrap();
    assert_eq!(lab.service.snapshots(image).await.unwrap(), [taken]);
    assert_eq!(
        code(lab.service.create_snapshot(image, "before", &NONE).await),
        ErrorCode::NameTaken
    );
    if lab.qemu_io(&image.to_string(), "qcow2", "write -P 1 0 64k") {
        assert!(lab.data(image).await != before);
    }
    let request = json(json!({"name": "old", "format": "raw", "snapshot": "before"}));
    let job = lab.service.convert_image(image, request, &NONE).await.unwrap();
    let old = lab.succeed(job).await.result_image_id().unwrap();
    assert!(lab.data(old).await == before);
    let applied = lab.service.apply_snapshot(image, "before", &NONE).await.unwrap();
    assert_eq!(applied.generation, 2);
    assert!(lab.data(image).await == before);
    lab.service.delete_snapshot(image, "before").await.unwrap();
    assert!(lab.service.snapshots(image).await.unwrap().is_empty());
    assert_eq!(
        code(lab.service.delete_snapshot(image, "before").await),
        ErrorCode::NotFound
    );
    assert_eq!(code(lab.service.snapshots(source.id).await), ErrorCode::Unsupported);
    if let Some(mut qemu_img) = common::tool("qemu-img") {
        let checked = qemu_img
            .args(["check", "-q"])
            .arg(lab.pool().join(image.to_string()))
            .status()
            .unwrap();
        assert!(checked.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_the_pool_are_imported_and_scanned() {
    let lab = Lab::new().await;
    let Some(mut qemu_img) = common::tool("qemu-img") else {
        return;
    };
    let bytes = sample(1 << 20, 9);
    std::fs::write(lab.pool().join("base.img"), &bytes).unwrap();
    let script = format!("create -q -f {OVERLAY} -b base.img -F raw top.{OVERLAY}");
    assert!(
        qemu_img
            .args(script.split(' '))
            .current_dir(lab.pool())
            .status()
            .unwrap()
            .success()
    );
    let header = std::fs::read(lab.pool().join(format!("top.{OVERLAY}"))).unwrap();
    std::fs::write(lab.pool().join("broken.qed"), &header[..100]).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", lab.pool().join("link.raw")).unwrap();

    let outside = common::import("x", None, ImportSource::PoolFile("link.raw".to_owned()));
    assert_eq!(code(lab.service.import_image(outside, &NONE).await), ErrorCode::Denied);
    let outside = common::import("x", None, ImportSource::PoolFile("../vdiskd.db".to_owned()));
    assert_eq!(
        code(lab.service.import_image(outside, &NONE).await),
        ErrorCode::InvalidName
    );

    let overlay = common::import("x", None, ImportSource::PoolFile(format!("top.{OVERLAY}")));
    let outcome = lab.service.import_image(overlay, &NONE).await.unwrap();
    let vdisk_service::request::ImportOutcome::Queued(job) = outcome else {
        panic!("a job was expected")
    };
    assert_eq!(lab.fail(job).await, ErrorCode::Denied);

    let job = lab.service.scan_pool("default", &NONE).await.unwrap();
    let result = lab.succeed(job).await.result.unwrap();
    assert_eq!(result["registered"].as_array().unwrap().len(), 2, "{result}");
    assert_eq!(result["skipped"][0]["file"], "broken.qed");
    let images = lab
        .service
        .list_images(&Default::default(), &Default::default())
        .await
        .unwrap()
        .items;
    let top = images.iter().find(|image| image.format == OVERLAY).unwrap();
    assert_eq!(lab.service.image_chain(top.id).await.unwrap().len(), 2);
    assert!(lab.data(top.id).await == bytes);
    let again = lab.service.scan_pool("default", &NONE).await.unwrap();
    assert_eq!(lab.succeed(again).await.result.unwrap()["registered"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn map_pages_agree_with_the_stream() {
    let lab = Lab::new().await;
    let base = lab.upload("base", Some("raw"), &sample(2 << 20, 10)).await.unwrap();
    let overlay = lab.overlay("overlay", base.id).await;
    lab.qemu_io(&overlay.id.to_string(), OVERLAY, "write -P 3 300k 64k");
    let request = MapRequest::default();
    let whole: Vec<_> = lab
        .service
        .image_map_stream(overlay.id, &request)
        .await
        .unwrap()
        .map(|extent| extent.unwrap())
        .collect()
        .await;
    let mut paged = Vec::new();
    let mut cursor = None;
    loop {
        let request = MapRequest {
            limit: Some(3),
            cursor,
            ..MapRequest::default()
        };
        let page = lab.service.image_map(overlay.id, &request).await.unwrap();
        assert!(page.extents.len() <= 3);
        paged.extend(page.extents);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(paged, whole);
    assert_eq!(whole.iter().map(|extent| extent.length).sum::<u64>(), 2 * MIB);
    let of_base = whole.iter().find(|extent| extent.depth == 1 && extent.data).unwrap();
    assert_eq!(
        (of_base.image_id, of_base.filename.clone()),
        (Some(base.id), Some(base.id.to_string()))
    );
    let part = MapRequest {
        start: Some(MIB),
        length: Some(4096),
        ..MapRequest::default()
    };
    let part = lab.service.image_map(overlay.id, &part).await.unwrap();
    assert_eq!((part.extents[0].start, part.extents[0].length), (MIB, 4096));
}

#[tokio::test(flavor = "multi_thread")]
async fn verified_jobs_tell_the_digest_of_what_the_guest_sees() {
    let lab = Lab::new().await;
    let bytes = sample(3 << 20, 21);
    let base = lab.create("base", "raw", 3 << 20).await;
    let source = lab.upload("source", Some("raw"), &bytes).await.unwrap();
    let request = json(json!({"name": "overlay", "format": OVERLAY, "backing": base.id, "verify": true}));
    let job = lab.service.convert_image(source.id, request, &NONE).await.unwrap();
    let made = lab.succeed(job).await;
    let (overlay, digest) = (made.result_image_id().unwrap(), made.result.unwrap()["digest"].clone());
    assert_eq!(digest.as_str().map(str::len), Some(64));
    let compress = json(json!({"algorithm": "zlib", "verify": true}));
    let compress = lab.service.compress_image(overlay, compress, &NONE).await.unwrap();
    let rebase = json(json!({"backing": null, "verify": true}));
    let commit = json(json!({"verify": true}));
    assert_eq!(lab.succeed(compress).await.result.unwrap()["digest"], digest);
    let job = lab.service.commit_image(overlay, commit, &NONE).await.unwrap();
    assert_eq!(lab.succeed(job).await.result.unwrap()["digest"], digest);
    assert!(lab.data(base.id).await == bytes && lab.data(overlay).await == bytes);
    let job = lab.service.rebase_image(overlay, rebase, &NONE).await.unwrap();
    assert_eq!(lab.succeed(job).await.result.unwrap()["digest"], digest);
    assert!(lab.data(overlay).await == bytes);
    let unsafe_one = json(json!({"backing": base.id, "mode": "unsafe", "verify": true}));
    let refused = lab.service.rebase_image(overlay, unsafe_one, &NONE).await;
    assert_eq!(code(refused), ErrorCode::InvalidArgument);
}
