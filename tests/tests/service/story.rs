//! The main job on a real disk that others made, through either transport by the same code.

use std::fs;

use e2e::corpus::{self, Sample};
use e2e::tools;
use sha2::{Digest, Sha256};

use crate::client::{Client, Conversion, Ended, Refusal};
use crate::grpc::Grpc;
use crate::http::Http;
use crate::vdiskd::{Vdiskd, folder, pool_files};

/// An ext2 file system of 4 MiB in a qcow2 file.
const SAMPLE: &str = "dfvfs/ext2.qcow2";

fn sample() -> Option<Sample> {
    let found = corpus::samples(&["qcow2"])?
        .into_iter()
        .find(|sample| sample.name() == SAMPLE);
    Some(found.expect("the corpus has the sample"))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn hex(bytes: &[u8]) -> String {
    sha256(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn succeeded(ended: Ended) -> Ended {
    assert_eq!(
        (ended.state.as_str(), ended.error.as_deref()),
        ("succeeded", None),
        "{ended:?}"
    );
    assert_eq!(Some(ended.done_bytes), ended.total_bytes, "{ended:?}");
    assert_eq!(ended.seen.first().map(String::as_str), Some("job.queued"), "{ended:?}");
    assert_eq!(ended.seen.last().map(String::as_str), Some("job.state"), "{ended:?}");
    ended
}

/// Converts while watching, and returns the new image's id.
async fn converted(client: &impl Client, id: &str, conversion: Conversion<'_>) -> String {
    let job = client.convert(id, conversion).await;
    succeeded(client.watch(&job).await)
        .image_id
        .expect("the job names its image")
}

/// qemu-img must read the same from a file we sent.
fn assert_qemu_reads(file: &[u8], expected: &[u8]) {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let place = folder();
    let (ours, raw) = (place.path().join("ours.qcow2"), place.path().join("expected.raw"));
    fs::write(&ours, file).unwrap();
    fs::write(&raw, expected).unwrap();
    tools::ok("qemu-img", &["check", "-q", "-f", "qcow2", tools::arg(&ours)]);
    tools::ok(
        "qemu-img",
        &[
            "compare",
            "-f",
            "qcow2",
            "-F",
            "raw",
            tools::arg(&ours),
            tools::arg(&raw),
        ],
    );
}

async fn take_in(client: &impl Client, sample: &Sample) -> String {
    let bytes = fs::read(&sample.path).unwrap();
    assert_eq!(hex(&bytes), sample.get("sha256"), "the corpus is intact");
    let digest = sha256(&bytes);
    let id = client.upload("disk", "qcow2", bytes, digest).await;
    assert_eq!(client.state(&id).await, "ready");
    let info = client.info(&id).await;
    assert_eq!(
        (info["format"].as_str(), info["virtual-size"].as_u64()),
        (Some("qcow2"), sample.virtual_size())
    );
    let map = client.map(&id).await;
    let mut end = 0;
    for (start, length) in map {
        assert_eq!(start, end, "the map leaves no gap");
        end = start + length;
    }
    assert_eq!(Some(end), sample.virtual_size());
    id
}

/// Upload, info, map, overlay, conversions, rebase, commit, download, clean up.
async fn main_job(client: &impl Client, sample: &Sample) {
    let digest = sample.content_sha256().expect("the manifest knows the content");
    let disk = take_in(client, sample).await;
    let overlay = client.overlay("overlay", &disk).await;
    assert_eq!(client.chain(&overlay).await, ["overlay", "disk"]);
    let refused = Refusal {
        code: "conflict_dependents".to_owned(),
        dependents: vec![overlay.clone()],
    };
    assert_eq!(client.delete(&disk).await, Err(refused));

    let raw = converted(client, &overlay, Conversion::to("raw-copy", "raw")).await;
    let packing = Conversion {
        compress: true,
        ..Conversion::to("packed-copy", "qcow2")
    };
    let packed = converted(client, &overlay, packing).await;
    for id in [&overlay, &raw, &packed] {
        assert_eq!(hex(&client.data(id).await), digest);
    }
    let content = client.data(&raw).await;
    assert_qemu_reads(&client.file(&packed).await, &content);

    let job = client.rebase(&overlay, Some(&raw)).await;
    succeeded(client.watch(&job).await);
    assert_eq!(client.chain(&overlay).await, ["overlay", "raw-copy"]);
    assert_eq!(hex(&client.data(&overlay).await), digest);

    let changed = change_and_commit(client, &packed, &content).await;
    assert_qemu_reads(&client.file(&packed).await, &changed);

    for id in [overlay, packed, raw, disk] {
        client.delete(&id).await.unwrap();
    }
}

/// Makes an overlay on `base` that differs from it, and commits it; returns what the guest sees then.
async fn change_and_commit(client: &impl Client, base: &str, content: &[u8]) -> Vec<u8> {
    let mut changed = content.to_vec();
    for at in (0..changed.len()).step_by(700_000) {
        changed[at] ^= 0xff;
    }
    let digest = sha256(&changed);
    let variant = client.upload("variant", "raw", changed.clone(), digest).await;
    let on_base = Conversion {
        backing: Some(base),
        ..Conversion::to("difference", "qcow2")
    };
    let difference = converted(client, &variant, on_base).await;
    assert_eq!(client.chain(&difference).await, ["difference", "packed-copy"]);
    assert_eq!(hex(&client.data(&difference).await), hex(&changed));
    assert_ne!(hex(&client.data(base).await), hex(&changed));

    let job = client.commit(&difference, true).await;
    succeeded(client.watch(&job).await);
    assert_eq!(hex(&client.data(base).await), hex(&changed));
    client.delete(&variant).await.unwrap();
    changed
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_through_http() {
    let Some(sample) = sample() else {
        return;
    };
    let data = folder();
    let vdiskd = Vdiskd::start(data.path(), &[]);
    let client = Http::new(&vdiskd.url);
    main_job(&client, &sample).await;
    assert_eq!((client.image_count().await, pool_files(data.path())), (0, Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_through_grpc() {
    let Some(sample) = sample() else {
        return;
    };
    let data = folder();
    let vdiskd = Vdiskd::start(data.path(), &[]);
    let client = Grpc::connect(&vdiskd.url).await;
    main_job(&client, &sample).await;
    assert_eq!((client.image_count().await, pool_files(data.path())), (0, Vec::new()));
}
