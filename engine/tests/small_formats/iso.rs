//! iso against genisoimage and the corpus.

use e2e::tools::{arg, have, ok};
use proptest::prelude::*;
use tempfile::TempDir;
use vdisk_engine::{ErrorKind, formats};

use crate::support::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_flipped_bytes_make_it_panic(flips in flips()) {
        let mut valid = vec![0; 600 << 10];
        valid[32768..32774].copy_from_slice(b"\x01CD001");
        valid[34816..34822].copy_from_slice(b"\x00BEA01");
        valid[36864..36870].copy_from_slice(b"\x00NSR03");
        valid[256 * 2048] = 2;
        valid[256 * 2048 + 16..256 * 2048 + 24].copy_from_slice(&[0, 0x80, 0, 0, 1, 1, 0, 0]);
        valid[257 * 2048] = 6;
        valid.rotate_left(32768);
        let mut flipped = valid.clone();
        for (at, value, _) in &flips {
            flipped[at % 6144] = *value;
        }
        flipped.rotate_right(32768);
        never_panics("iso", &flipped, 1, &[]);
    }
}

#[test]
fn info_has_what_genisoimage_was_told() {
    if !have(&["genisoimage"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (folder, path) = (dir.path().join("in"), dir.path().join("a.iso"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("boot.img"), vec![1; 2048]).unwrap();
    ok(
        "genisoimage",
        &[
            "-quiet",
            "-J",
            "-udf",
            "-V",
            "MY_VOLUME",
            "-p",
            "me",
            "-b",
            "boot.img",
            "-no-emul-boot",
            "-o",
            arg(&path),
            arg(&folder),
        ],
    );
    let image = open_ro(file(&path, false), "iso").unwrap();
    let facts = image.info().unwrap().specific.unwrap();
    assert_eq!(facts["volume-id"], "MY_VOLUME");
    assert_eq!(facts["udf-volume-id"], "MY_VOLUME");
    assert_eq!(facts["preparer"], "me");
    assert_eq!(
        (&facts["joliet"], &facts["el-torito"], &facts["udf"]),
        (&true.into(), &true.into(), &true.into())
    );
    assert_eq!(facts["block-size"], 2048);
    let found = formats::detect(file(&path, false).as_ref()).unwrap();
    assert_eq!(found[0].0.name(), "iso");
}

#[test]
fn a_file_without_volume_descriptor_is_not_this_format() {
    let storage = std::sync::Arc::new(vdisk_engine::storage::MemoryStorage::new("m", vec![0; 100_000]));
    assert_eq!(open_ro(storage, "iso").err().unwrap().kind(), ErrorKind::NotThisFormat);
}

#[test]
fn the_corpus_reads_as_its_manifest_says() {
    corpus_matches(&["iso"], "iso");
}
