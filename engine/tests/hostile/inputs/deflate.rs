//! What the encoder of streamOptimized grains makes of the input, read by libdeflate.

use std::sync::Arc;

use libdeflater::Decompressor;
use vdisk_engine::env::CreateSpec;
use vdisk_engine::gate::Node;
use vdisk_engine::options::Options;
use vdisk_engine::storage::{MemoryStorage, read_vec};
use vdisk_engine::{Chain, Limits, OpenEnv, Result, Storage, ops};

use super::create_env;

const SECTOR: usize = 512;
/// The largest grain that the encoder takes.
const LARGEST: usize = 64 << 10;
/// Guest sector and length of the data, before each grain.
const MARKER: usize = 12;

/// The data as an only grain, which is as small as it can be.
pub fn round_trip(data: &[u8]) {
    let data = &data[..data.len().min(LARGEST)];
    let mut grain = data.to_vec();
    grain.resize(data.len().next_power_of_two().max(SECTOR), 0);
    if let Err(error) = written(&grain).map(|file| check(&file, &grain)) {
        panic!("the grain is not written: {error:?}");
    }
}

/// A streamOptimized image that holds this grain alone.
fn written(grain: &[u8]) -> Result<Vec<u8>> {
    let file = Arc::new(MemoryStorage::empty());
    let limits = Limits::default();
    let spec = CreateSpec {
        virtual_size: grain.len() as u64,
        options: Options::new().with("subformat", "streamOptimized"),
        backing: None,
    };
    ops::create::create(file.clone(), "vmdk", &spec, &create_env(&limits))?;
    // New images have grains of 64 KiB, but others are written as well: `grain_size` of the header and of the footer before the last sector.
    for at in [0, file.len()?.saturating_sub(2 * SECTOR as u64)] {
        file.write_at(at + 20, &(grain.len() as u64 / 512).to_le_bytes())?;
    }
    let chain = Chain::open(Node::new(file.clone(), "vmdk"), &OpenEnv::closed(&limits).writable())?;
    chain.write(0, grain)?;
    let mut back = vec![0; grain.len()];
    chain.read(0, &mut back)?;
    assert!(back == grain, "the image reads as something else");
    chain.top().close()?;
    drop(chain);
    read_vec(&*file, 0, usize::try_from(file.len()?).unwrap_or(0))
}

/// The first grain's stream holds the grain, and ends where its marker says.
fn check(file: &[u8], grain: &[u8]) {
    let number = |at: usize, len: usize| file[at..at + len].iter().rev().fold(0, |n, b| n << 8 | usize::from(*b));
    let at = number(64, 8) * SECTOR;
    let len = number(at + 8, 4);
    let mut back = vec![0; grain.len() + 1];
    let stream = &file[at + MARKER..][..len];
    let found = Decompressor::new().zlib_decompress(stream, &mut back);
    assert_eq!(found, Ok(grain.len()), "what libdeflate reads");
    assert!(back[..grain.len()] == *grain, "libdeflate reads something else");
    assert!(
        stream.ends_with(&libdeflater::adler32(grain).to_be_bytes()),
        "the stream ends before its marker says"
    );
}
