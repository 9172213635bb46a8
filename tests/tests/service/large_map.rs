//! A map of a million extents, as lines over HTTP and as messages over gRPC: the program's memory hardly grows.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use futures::StreamExt;
use serde_json::{Value, json};
use vdisk_api::proto::GetMapRequest;
use vdisk_api::proto::image_service_client::ImageServiceClient;

use crate::vdiskd::{Vdiskd, folder};

const EXTENTS: u64 = 1_000_000;
const CLUSTER: u64 = 65536;
/// What the program's memory may grow by meanwhile.
const GROWTH: u64 = 64 << 20;

/// Makes every other cluster of an image with preallocated metadata read as zeroes: then no two neighbours are alike.
fn scatter(file: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    // The header's fields and the entries' bits are those of QEMU's specification of qcow2.
    let l1_size = u32::from_be_bytes(bytes(&file, 36));
    let l1_offset = u64::from_be_bytes(bytes(&file, 40));
    for index in 0..u64::from(l1_size) {
        let table = u64::from_be_bytes(bytes(&file, l1_offset + index * 8)) & 0x00ff_ffff_ffff_fe00;
        let mut entries = vec![0; 65536];
        file.read_exact_at(&mut entries, table).unwrap();
        // The lowest bit of an entry says "all zeroes"; the entries are big-endian.
        entries.iter_mut().skip(7).step_by(16).for_each(|byte| *byte |= 1);
        file.write_all_at(&entries, table).unwrap();
    }
}

fn bytes<const N: usize>(file: &File, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

/// A line of the process's status, in bytes.
fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kib: u64 = line
        .trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib << 10
}

/// Runs `work` and gives how much more memory than before it the process had at its peak.
async fn growth<T>(pid: u32, work: impl Future<Output = T>) -> (T, u64) {
    // 5 sets the peak back to what is taken now (proc(5)).
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    let before = memory(pid, "VmRSS");
    let done = work.await;
    (done, memory(pid, "VmHWM").saturating_sub(before))
}

async fn lines(url: &str, id: &str) -> u64 {
    let request = reqwest::Client::new().get(format!("{url}/v1/images/{id}/map"));
    let answer = request.header("accept", "application/x-ndjson").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let mut body = answer.bytes_stream();
    let mut lines = 0;
    while let Some(piece) = body.next().await {
        lines += piece.unwrap().iter().map(|byte| u64::from(*byte == b'\n')).sum::<u64>();
    }
    lines
}

async fn messages(url: &str, id: &str) -> u64 {
    let mut images = ImageServiceClient::connect(url.to_owned()).await.unwrap();
    let request = GetMapRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let mut extents = images.get_map(request).await.unwrap().into_inner();
    let (mut count, mut end) = (0, 0);
    while let Some(extent) = extents.message().await.unwrap() {
        assert_eq!(extent.start, end, "the map has no gaps");
        end += extent.length;
        count += 1;
    }
    assert_eq!(end, EXTENTS * CLUSTER);
    count
}

async fn create(url: &str) -> String {
    let body = json!({"name": "scattered", "format": "qcow2", "virtual_size": EXTENTS * CLUSTER,
        "options": {"preallocation": "metadata"}});
    let made = reqwest::Client::new()
        .post(format!("{url}/v1/images"))
        .json(&body)
        .send()
        .await
        .unwrap();
    let made: Value = made.json().await.unwrap();
    made["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_extents_take_no_memory() {
    let data = folder();
    let vdiskd = Vdiskd::start(data.path(), &[]);
    let id = create(&vdiskd.url).await;
    scatter(&data.path().join("pools/default").join(&id));
    let (count, by_lines) = growth(vdiskd.id(), lines(&vdiskd.url, &id)).await;
    assert_eq!(count, EXTENTS);
    let (count, by_messages) = growth(vdiskd.id(), messages(&vdiskd.url, &id)).await;
    assert_eq!(count, EXTENTS);
    println!(
        "memory grew by {} KiB for lines, {} KiB for messages",
        by_lines >> 10,
        by_messages >> 10
    );
    assert!(
        by_lines < GROWTH && by_messages < GROWTH,
        "{by_lines} and {by_messages} bytes"
    );
}
