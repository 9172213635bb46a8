//! Compressing in place: all but the size of the file stays what it was, for the image and for those that stand on it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use common::{Lab, NONE, code, json, sample, tool};
use serde_json::{Value, json};
use vdisk_service::ErrorCode;
use vdisk_service::model::{Image, ImageId, Job};
use vdisk_service::request::JobRequest;

const SIZE: usize = 1 << 20;

/// What can be compressed, and in which ways.
fn kinds() -> Vec<(&'static str, Value)> {
    vec![
        ("qcow", json!({})),
        ("qcow2", json!({})),
        ("qcow2", json!({"compat": "0.10", "cluster_size": "4096"})),
        ("qcow2", json!({"lazy_refcounts": "on", "refcount_bits": "8"})),
        ("qcow2", json!({"extended_l2": "on", "cluster_size": "16384"})),
        ("vmdk", json!({"subformat": "streamOptimized"})),
        (
            "vmdk",
            json!({"subformat": "streamOptimized", "adapter_type": "lsilogic", "hwversion": "11", "toolsversion": "12352",
                "zeroed_grain": "on"}),
        ),
    ]
}

/// An image that shows these bytes, over a base or alone.
async fn made(lab: &Lab, name: &str, kind: &(&str, Value), bytes: &[u8], base: Option<ImageId>) -> ImageId {
    let raw = lab.upload("to-convert", Some("raw"), bytes).await.unwrap().id;
    let request = json!({"name": name, "format": kind.0, "options": kind.1, "backing": base});
    let job = lab.service.convert_image(raw, json(request), &NONE).await.unwrap();
    let made = lab.succeed(job).await.result_image_id().unwrap();
    lab.service.delete_image(raw).await.unwrap();
    made
}

async fn compress(lab: &Lab, image: ImageId) -> Job {
    let request = json(json!({"algorithm": "zlib"}));
    lab.service.compress_image(image, request, &NONE).await.unwrap()
}

async fn image(lab: &Lab, id: ImageId) -> Image {
    lab.service.image(id).await.unwrap()
}

/// What the peer's tools read, when they are there.
fn seen_by_peer(lab: &Lab, image: ImageId, format: &str) -> Option<Vec<u8>> {
    let raw = lab.dir.path().join("seen.raw");
    let mut convert = tool("qemu-img")?;
    convert.args(["convert", "-f", format, "-O", "raw"]);
    let done = convert
        .arg(lab.pool().join(image.to_string()))
        .arg(&raw)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Some(std::fs::read(raw).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_layer_of_a_chain_is_compressed_and_all_show_what_they_showed() {
    for kind in kinds() {
        let lab = Lab::new().await;
        let mut bytes = sample(SIZE, 1);
        let mut layers: Vec<(ImageId, Vec<u8>)> = Vec::new();
        for number in 0..3 {
            let base = layers.last().map(|(id, _)| *id);
            bytes[number * 300_000..][..200_000].copy_from_slice(&sample(200_000, 7 + number as u64));
            bytes[number * 100_000..][..70_000].fill(0);
            let id = made(&lab, &format!("layer{number}"), &kind, &bytes, base).await;
            layers.push((id, bytes.clone()));
        }
        for (compressed, _) in &layers {
            let job = compress(&lab, *compressed).await;
            lab.succeed(job).await;
            for (number, (id, bytes)) in layers.iter().enumerate() {
                assert!(lab.data(*id).await == *bytes, "{kind:?}: layer {number}");
                let seen = seen_by_peer(&lab, *id, kind.0);
                assert!(seen.is_none_or(|seen| seen == *bytes), "{kind:?}: layer {number}");
            }
        }
        lab.assert_tidy().await;
    }
}

/// What `info` says but for what compressing is to change, and how long the file happens to be.
async fn lasting_info(lab: &Lab, id: ImageId) -> Value {
    let mut info = lab.service.image_info(id).await.unwrap();
    let keys = info.as_object_mut().unwrap();
    keys.retain(|key, _| ["format", "virtual-size", "cluster-size", "format-specific"].contains(&key.as_str()));
    info
}

/// The lines of a descriptor that lies in its extent.
fn descriptor(lab: &Lab, id: ImageId) -> Vec<String> {
    let file = std::fs::read(lab.pool().join(id.to_string())).unwrap();
    let text = String::from_utf8_lossy(&file[512..]);
    let text = text.split('\0').next().unwrap();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_of_the_same_kind_when_it_was_compressed() {
    for kind in kinds() {
        let lab = Lab::new().await;
        let id = made(&lab, "disk", &kind, &sample(SIZE, 3), None).await;
        let (before, info) = (image(&lab, id).await, lasting_info(&lab, id).await);
        let said = (kind.0 == "vmdk").then(|| descriptor(&lab, id));
        let job = compress(&lab, id).await;
        lab.succeed(job).await;
        let after = image(&lab, id).await;
        assert!(
            after.allocated_size <= before.allocated_size,
            "{kind:?}: {before:?} {after:?}"
        );
        assert!(
            after.allocated_size < SIZE as u64 / 2,
            "{kind:?} is not compressed: {after:?}"
        );
        assert_eq!(lasting_info(&lab, id).await, info, "{kind:?}");
        if let Some(said) = said {
            assert_eq!(descriptor(&lab, id), said, "{kind:?}");
            // The flag for grains of zeroes.
            let flags = std::fs::read(lab.pool().join(id.to_string())).unwrap()[8];
            assert_eq!(flags & 4 != 0, kind.1["zeroed_grain"] == "on");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_compressed_as_it_is_is_refused_before_as_after() {
    let lab = Lab::new().await;
    let sparse = ("vmdk", json!({"subformat": "monolithicSparse"}));
    let old = ("qcow2", json!({"compat": "0.10"}));
    for (number, (kind, algorithm)) in [(sparse, "zlib"), (old, "zstd")].into_iter().enumerate() {
        let id = made(&lab, &format!("disk{number}"), &kind, &sample(SIZE, 5), None).await;
        let request = json!({"algorithm": algorithm});
        let planned = lab
            .service
            .plan_job(JobRequest::Compress(id, json(request.clone())))
            .await;
        assert_eq!(code(planned), ErrorCode::Unsupported, "{kind:?}");
        let before = std::fs::read(lab.pool().join(id.to_string())).unwrap();
        let job = lab.service.compress_image(id, json(request), &NONE).await.unwrap();
        assert_eq!(lab.fail(job).await, ErrorCode::Unsupported, "{kind:?}");
        assert!(std::fs::read(lab.pool().join(id.to_string())).unwrap() == before);
    }
    lab.assert_tidy().await;
}
