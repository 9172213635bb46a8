//! Micro-benchmarks of the queue: what a worker asks for its next job, beside 10,000 jobs that have ended.
//!
//! `cargo bench -p vdisk-service --bench queue`. The database is in memory where there is such a folder, so that the question is measured
//! and no disk.

#![expect(clippy::unwrap_used, reason = "a broken precondition stops the benchmark")]

use std::path::Path;

use divan::Bencher;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use vdisk_service::queue_sample::QueueSample;

const FINISHED: u32 = 10_000;
/// Jobs that wait: one, and as many as a busy service has.
const QUEUED: [u32; 3] = [1, 1_000, 10_000];

fn main() {
    divan::main();
}

fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

fn sample(queued: u32) -> (Runtime, TempDir, QueueSample) {
    let (runtime, folder) = (Runtime::new().unwrap(), folder());
    let sample = runtime
        .block_on(QueueSample::new(folder.path(), FINISHED, queued))
        .unwrap();
    (runtime, folder, sample)
}

/// The next job is found in a transaction that is taken back.
#[divan::bench(args = QUEUED, sample_count = 100, sample_size = 10)]
fn look(bencher: Bencher<'_, '_>, queued: u32) {
    let (runtime, _folder, sample) = sample(queued);
    bencher.bench_local(|| assert!(runtime.block_on(sample.look()).unwrap()));
}

/// The next job is claimed for good; the queue gets a tenth shorter.
#[divan::bench(args = [1_000, 10_000], sample_count = 100, sample_size = 1)]
fn claim(bencher: Bencher<'_, '_>, queued: u32) {
    let (runtime, _folder, sample) = sample(queued);
    bencher.bench_local(|| assert!(runtime.block_on(sample.claim()).unwrap()));
}

/// There is nothing to do.
#[divan::bench(sample_count = 100, sample_size = 10)]
fn look_in_vain(bencher: Bencher<'_, '_>) {
    let (runtime, _folder, sample) = sample(0);
    bencher.bench_local(|| assert!(!runtime.block_on(sample.look()).unwrap()));
}
