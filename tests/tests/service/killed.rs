//! A process that ends in the middle of the work.

use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::client::{Client, Conversion};
use crate::http::Http;
use crate::vdiskd::{Vdiskd, folder, pool_files};

const SIZE: usize = 96 << 20;
/// Slow enough to be caught at work.
const RATE: u64 = 16 << 20;

fn content() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let words = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state
    });
    words.take(SIZE / 8).flat_map(u64::to_le_bytes).collect()
}

/// Uploads a disk, starts a slow conversion, and waits until it has got somewhere.
async fn caught_at_work(client: &Http, content: &[u8]) -> String {
    let id = client
        .upload("disk", "raw", content.to_vec(), Sha256::digest(content).into())
        .await;
    let job = client
        .convert(
            &id,
            Conversion {
                rate_limit: Some(RATE),
                ..Conversion::to("copy", "qcow2")
            },
        )
        .await;
    for _ in 0..4_000 {
        if client.done_bytes(&job).await > 4 << 20 {
            return job;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the job does not get anywhere");
}

async fn assert_finished_right(client: &Http, job: &str, content: &[u8], data: &std::path::Path) -> u64 {
    let ended = client.watch(job).await;
    assert_eq!(ended.state, "succeeded", "{ended:?}");
    let copy = ended.image_id.unwrap();
    assert!(client.data(&copy).await == content, "the copy has the content");
    assert_eq!(
        (client.image_count().await, pool_files(data).len()),
        (2, 2),
        "{:?}",
        pool_files(data)
    );
    ended.attempt
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_conversion_runs_again_and_leaves_nothing_half_done() {
    let (data, content) = (folder(), content());
    let first = Vdiskd::start(data.path(), &["--lease-seconds", "2"]);
    let job = caught_at_work(&Http::new(&first.url), &content).await;
    first.kill();
    let second = Vdiskd::start(data.path(), &["--lease-seconds", "2"]);
    let attempt = assert_finished_right(&Http::new(&second.url), &job, &content, data.path()).await;
    assert!(attempt >= 2, "started {attempt} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_process_hands_its_job_back() {
    let (data, content) = (folder(), content());
    let first = Vdiskd::start(data.path(), &["--shutdown-grace-seconds", "1"]);
    let job = caught_at_work(&Http::new(&first.url), &content).await;
    let began = std::time::Instant::now();
    assert_eq!(first.terminate(), 0);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let second = Vdiskd::start(data.path(), &[]);
    assert_finished_right(&Http::new(&second.url), &job, &content, data.path()).await;
}
