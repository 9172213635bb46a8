//! bochs against bximage, qemu-img and the corpus.

use e2e::tools::{arg, have, ok};
use proptest::prelude::*;
use tempfile::TempDir;
use vdisk_engine::image::NothingBelow;

use crate::support::{self, *};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_image_behaves_as_a_byte_array(ops in ops(200 << 10)) {
        behaves_as_bytes("bochs", created("bochs", 200 << 10, &[]), &ops);
    }

    #[test]
    fn no_flipped_bytes_make_it_panic(flips in flips()) {
        let storage = created("bochs", 1 << 20, &[]);
        let image = open_rw(storage.clone(), "bochs").unwrap();
        image.write(5000, &[9; 20_000], &NothingBelow).unwrap();
        image.close().unwrap();
        never_panics("bochs", &storage.contents(), 530, &flips);
    }
}

#[test]
fn created_files_are_those_of_bximage() {
    if !have(&["bximage"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    for megabytes in [10, 600, 5000, 200_000] {
        let theirs = dir.path().join(format!("{megabytes}.img"));
        ok(
            "bximage",
            &[
                "-q",
                "-func=create",
                &format!("-hd={megabytes}"),
                "-imgmode=growing",
                arg(&theirs),
            ],
        );
        let theirs = std::fs::read(&theirs).unwrap();
        let size = u64::from_le_bytes(theirs[88..96].try_into().unwrap());
        assert!(created("bochs", size, &[]).contents() == theirs, "{megabytes} MB");
    }
}

#[test]
fn a_new_image_is_filled_from_many_threads() {
    let mut data = pattern(20 * 16 * 63 * 512);
    data[3 << 20..7 << 20].fill(0);
    bulk_fill("bochs", created("bochs", data.len() as u64, &[]), &data);
}

#[test]
fn qemu_and_bximage_read_what_we_write() {
    if !have(&["qemu-img", "bximage"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (path, raw) = (dir.path().join("a.img"), dir.path().join("a.raw"));
    let mut data = vec![0; 20 * 16 * 63 * 512];
    data[1 << 20..5 << 20].copy_from_slice(&pattern(4 << 20));
    data[70_000..70_010].fill(3);
    create_on(file(&path, true), "bochs", data.len() as u64, &[], None);
    let image = open_rw(file(&path, true), "bochs").unwrap();
    image.write(1 << 20, &data[1 << 20..5 << 20], &NothingBelow).unwrap();
    image.write(70_000, &data[70_000..70_010], &NothingBelow).unwrap();
    image.close().unwrap();
    drop(image);
    std::fs::write(&raw, &data).unwrap();
    ok(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "bochs", arg(&raw), arg(&path)],
    );
    let flat = dir.path().join("flat.img");
    ok(
        "bximage",
        &["-q", "-func=convert", "-imgmode=flat", arg(&path), arg(&flat)],
    );
    assert!(std::fs::read(&flat).unwrap() == data);
}

#[test]
fn an_undoable_redolog_shows_its_changes_over_the_disk() {
    let dir = TempDir::new().unwrap();
    let (base, redolog) = (dir.path().join("disk.img"), dir.path().join("disk.img.redolog"));
    let mut model = pattern(1 << 20);
    std::fs::write(&base, &model).unwrap();
    create_on(file(&redolog, true), "bochs", 1 << 20, &[], None);
    let mut bytes = std::fs::read(&redolog).unwrap();
    bytes[48..64].copy_from_slice(b"Undoable\0\0\0\0\0\0\0\0");
    std::fs::write(&redolog, bytes).unwrap();
    let chain = support::chain(&[(&redolog, "bochs"), (&base, "raw")], true);
    chain.write(100_100, &[7; 5000]).unwrap();
    chain.top().close().unwrap();
    model[100_100..105_100].fill(7);
    assert!(content(&chain) == model);
    assert_eq!(chain.top().backing().unwrap().name, "disk.img");
}

#[test]
fn a_crash_at_any_change_keeps_what_was_flushed() {
    let fresh = created("bochs", 64 << 10, &[]).contents();
    survives_crashes("bochs", fresh, &crash_script(4096), |_| ());
}

#[test]
fn the_corpus_reads_as_its_manifest_says() {
    corpus_matches(&["bochs", "bochs-sparse"], "bochs");
}
