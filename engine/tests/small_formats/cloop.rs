//! cloop against cloop-utils, qemu-img and the corpus.

use std::sync::Arc;

use e2e::tools::{arg, have, ok};
use proptest::prelude::*;
use tempfile::TempDir;
use vdisk_engine::ErrorKind;
use vdisk_engine::storage::MemoryStorage;

use crate::support::*;

fn filled(data: &[u8], block: &str) -> Vec<u8> {
    let storage = created("cloop", data.len() as u64, &[("block_size", block)]);
    bulk_fill("cloop", storage.clone(), data);
    storage.contents()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_flipped_bytes_make_it_panic(flips in flips()) {
        never_panics("cloop", &filled(&pattern(100 << 10), "4096"), 330, &flips);
    }

    #[test]
    fn what_is_filled_is_read(seed in any::<u64>(), blocks in 1usize..20) {
        let mut data = pattern(blocks * 4096);
        for (n, block) in data.chunks_mut(4096).enumerate() {
            if seed >> n & 1 == 0 {
                block.fill(0);
            }
        }
        filled(&data, "4096");
    }
}

#[test]
fn peers_read_what_we_write() {
    if !have(&["qemu-img", "extract_compressed_fs"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (path, raw) = (dir.path().join("a.cloop"), dir.path().join("a.raw"));
    let data = pattern(32 << 16);
    std::fs::write(&raw, &data).unwrap();
    std::fs::write(&path, filled(&data, "65536")).unwrap();
    ok(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "cloop", arg(&raw), arg(&path)],
    );
    let out = dir.path().join("out.raw");
    ok("extract_compressed_fs", &[arg(&path), arg(&out)]);
    assert!(std::fs::read(&out).unwrap() == data);
}

#[test]
fn a_file_whose_filling_was_interrupted_is_corrupt() {
    let storage = created("cloop", 1 << 20, &[]);
    let image = open_rw(storage.clone(), "cloop").unwrap();
    image.write_compressed(0, &[1; 65536]).unwrap();
    drop(image);
    assert_eq!(open_ro(storage, "cloop").err().unwrap().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_table_that_cannot_fit_the_file_is_refused() {
    let mut bytes = filled(&pattern(8192), "512");
    bytes[132..136].copy_from_slice(&0x03ff_fffeu32.to_be_bytes());
    let error = open_ro(Arc::new(MemoryStorage::new("m", bytes)), "cloop")
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn a_block_that_inflates_to_another_size_is_an_error() {
    let mut bytes = filled(&pattern(8192), "4096");
    bytes[128..132].copy_from_slice(&8192u32.to_be_bytes());
    let image = open_ro(Arc::new(MemoryStorage::new("m", bytes)), "cloop").unwrap();
    assert_eq!(image.read(0, &mut [0; 512]).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn the_corpus_reads_as_its_manifest_says() {
    corpus_matches(&["cloop"], "cloop");
}
