//! cow (User-mode Linux) against uml-utilities and the corpus.

use std::sync::Arc;

use e2e::tools::{arg, have, ok};
use proptest::prelude::*;
use tempfile::TempDir;
use vdisk_engine::image::NothingBelow;
use vdisk_engine::storage::MemoryStorage;

use crate::support::{self, *};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_image_behaves_as_a_byte_array(ops in ops(100_001)) {
        behaves_as_bytes("cow", created("cow", 100_001, &[]), &ops);
    }

    #[test]
    fn no_flipped_bytes_make_it_panic(flips in flips()) {
        let storage = created("cow", 1 << 20, &[]);
        let image = open_rw(storage.clone(), "cow").unwrap();
        image.write(5000, &[9; 20_000], &NothingBelow).unwrap();
        image.close().unwrap();
        never_panics("cow", &storage.contents(), 40, &flips);
    }
}

#[test]
fn created_files_are_those_of_uml_mkcow() {
    if !have(&["uml_mkcow"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    for size in [512u64, 1_000_000, 64 << 20] {
        let (base, theirs) = (dir.path().join("base.raw"), dir.path().join("theirs.cow"));
        std::fs::File::create(&base).unwrap().set_len(size).unwrap();
        let _ = std::fs::remove_file(&theirs);
        ok("uml_mkcow", &[arg(&theirs), arg(&base)]);
        let theirs = std::fs::read(&theirs).unwrap();
        let mtime = u32::from_be_bytes(theirs[8..12].try_into().unwrap()).to_string();
        let ours = Arc::new(MemoryStorage::empty());
        create_on(
            ours.clone(),
            "cow",
            size,
            &[("backing_mtime", &mtime)],
            Some((arg(&base), "raw")),
        );
        assert!(ours.contents() == theirs, "{size}");
    }
}

#[test]
fn uml_moo_merges_what_we_write() {
    if !have(&["uml_moo"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (base, top, merged) = (
        dir.path().join("base.raw"),
        dir.path().join("top.cow"),
        dir.path().join("merged.raw"),
    );
    let mut model = pattern(1 << 20);
    std::fs::write(&base, &model).unwrap();
    let mtime = std::os::unix::fs::MetadataExt::mtime(&std::fs::metadata(&base).unwrap()).to_string();
    create_on(
        file(&top, true),
        "cow",
        1 << 20,
        &[("backing_mtime", &mtime)],
        Some((arg(&base), "raw")),
    );
    let chain = support::chain(&[(&top, "cow"), (&base, "raw")], true);
    chain.write(70_001, &[7; 90_000]).unwrap();
    chain.write_zeroes(300_000, 200_000, true).unwrap();
    chain.top().close().unwrap();
    model[70_001..160_001].fill(7);
    model[300_000..500_000].fill(0);
    assert!(content(&chain) == model);
    drop(chain);
    ok("uml_moo", &["-b", arg(&base), arg(&top), arg(&merged)]);
    assert!(std::fs::read(&merged).unwrap() == model);
}

#[test]
fn a_filled_image_is_read() {
    let data = pattern(300_000);
    bulk_fill("cow", created("cow", 300_000, &[]), &data);
}

#[test]
fn another_backing_file_can_be_named() {
    let storage = created("cow", 1 << 20, &[]);
    let image = open_rw(storage.clone(), "cow").unwrap();
    assert_eq!(image.backing(), None);
    let other = vdisk_engine::env::BackingReference {
        name: "other.raw".to_owned(),
        format: Some("raw".to_owned()),
    };
    image.set_backing(Some(&other)).unwrap();
    assert_eq!(open_ro(storage, "cow").unwrap().backing(), Some(other));
}

#[test]
fn a_crash_at_any_change_keeps_what_was_flushed() {
    let fresh = created("cow", 64 << 10, &[]).contents();
    survives_crashes("cow", fresh, &crash_script(4096), |_| ());
}

#[test]
fn the_corpus_reads_as_its_manifest_says_over_its_base() {
    let Some(samples) = e2e::corpus::samples(&["uml-cow"]) else {
        return;
    };
    assert_eq!(samples.len(), 2);
    for sample in samples {
        let base = sample.path.with_file_name("base4m.img");
        let chain = support::chain(&[(&sample.path, "cow"), (&base, "raw")], false);
        assert_eq!(
            sha256(&chain),
            sample.content_sha256().unwrap()[..64],
            "{}",
            sample.name()
        );
        let backing = chain.top().backing().unwrap();
        assert!(backing.name.ends_with("base4m.img"), "{}", backing.name);
    }
}
