//! Images made to break a reader: each is refused with a typed error, and no bit flip makes the driver panic.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::Vmdk;
use super::tests::{Files, created, open_on, open_to_check, stream_options, whole};
use crate::formats::FormatDriver;
use crate::gate::{DenyAll, Gate, Node, Reference};
use crate::image::{NothingBelow, Repair};
use crate::options::Options;
use crate::storage::{FileOptions, FileStorage, MemoryStorage};
use crate::{Control, Error, ErrorKind, Image, Limits, OpenEnv, StorageRef};

const GRAIN: usize = 65536;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn sparse_with(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = created(64 << 20, Options::new());
    put(&mut bytes, at, value);
    bytes
}

/// Opens with everything denied, and reads a little: the first error of the two.
fn refusal(bytes: Vec<u8>) -> Option<Error> {
    let limits = Limits::default();
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    match Vmdk.open(storage, &Options::new(), &OpenEnv::closed(&limits)) {
        Err(error) => Some(error),
        Ok(image) => image.read(0, &mut [0; 512]).err(),
    }
}

fn assert_refused(cases: Vec<(Vec<u8>, ErrorKind, &str)>) {
    for (number, (bytes, kind, word)) in cases.into_iter().enumerate() {
        let error = refusal(bytes).unwrap_or_else(|| panic!("case {number} ({word}) was read"));
        assert_eq!(error.kind(), kind, "case {number}: {error}");
        assert!(error.to_string().contains(word), "case {number} ({word}): {error}");
    }
}

#[test]
fn header_fields_that_cannot_be_true_are_refused_by_name() {
    use ErrorKind::{Corrupt, LimitExceeded, NotThisFormat, Unsupported};
    let long = |at, value: u64| sparse_with(at, &value.to_le_bytes());
    let word = |at, value: u32| sparse_with(at, &value.to_le_bytes());
    assert_refused(vec![
        (word(0, 0), NotThisFormat, "VMDK"),
        (word(4, 0), Unsupported, "version"),
        (word(4, 4), Unsupported, "version"),
        (word(4, 9), Unsupported, "version"),
        (long(12, 1 << 63), Corrupt, "capacity"),
        (long(12, u64::MAX), Corrupt, "capacity"),
        (long(12, 1 << 53), LimitExceeded, "L1 size too big"),
        (long(12, 1 << 40), Corrupt, "grain directory"),
        (long(20, 0), Corrupt, "grain_size"),
        (long(20, 3), Corrupt, "grain_size"),
        (long(20, 1 << 18), Corrupt, "grain_size"),
        (long(20, u64::MAX), Corrupt, "grain_size"),
        (long(28, 1 << 40), Corrupt, "descriptor"),
        (long(28, u64::MAX), Corrupt, "descriptor_offset"),
        (long(36, 2049), Corrupt, "descriptor_size"),
        (long(36, u64::MAX), Corrupt, "descriptor_size"),
        (word(44, 0), Corrupt, "entries_per_table"),
        (word(44, 513), Corrupt, "entries_per_table"),
        (word(44, u32::MAX), Corrupt, "entries_per_table"),
        (long(56, 0), Corrupt, "grain directory"),
        (long(56, u64::MAX - 1), Corrupt, "directory_offset"),
        (long(56, u64::MAX), Corrupt, "footer"),
        (long(56, 1 << 30), Corrupt, "grain directory"),
        (long(64, u64::MAX), Corrupt, "overhead"),
        (sparse_with(73, b"\r"), Corrupt, "newline"),
        (word(30 * 512, u32::MAX), Corrupt, "grain table 0"),
        (word(31 * 512, u32::MAX), Corrupt, "the file ends"),
        (word(31 * 512, 1), Corrupt, "outside the grains"),
        (word(31 * 512, 20), Corrupt, "outside the grains"),
    ]);
}

#[test]
fn two_directory_entries_for_one_table_are_not_written_through() {
    let bytes = sparse_with(30 * 512 + 4, &31u32.to_le_bytes());
    let error = open_on(Arc::new(MemoryStorage::new("m", bytes))).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let expected = "grain table 0 at 0x3e00 reaches over grain table 1 at 0x3e00";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn redundant_tables_past_the_end_are_not_written() {
    let bytes = sparse_with(21 * 512, &0x0400_0000u32.to_le_bytes());
    let error = open_on(Arc::new(MemoryStorage::new("m", bytes))).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.to_string().contains("redundant grain table 0 at 0x800000000"),
        "{error}"
    );
}

#[test]
fn a_directory_that_the_file_cannot_hold_is_refused_before_it_is_allocated() {
    // 512 TiB: a directory of 64 MiB, within the limits, in a file of 64 KiB.
    let bytes = sparse_with(12, &(1u64 << 40).to_le_bytes());
    assert_eq!(refusal(bytes).unwrap().kind(), ErrorKind::Corrupt);
}

/// A stream with three grains of ones; the first grain's marker is at 64 KiB.
fn stream() -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::new("d.vmdk", created(40 << 20, stream_options())));
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[1; 3 * GRAIN], &NothingBelow).unwrap();
    image.close().unwrap();
    storage.contents()
}

fn stream_with(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = stream();
    put(&mut bytes, at, value);
    bytes
}

#[test]
fn streams_that_contradict_themselves_are_refused() {
    use ErrorKind::{Corrupt, Unsupported};
    let end = stream().len();
    let (first, footer) = (GRAIN, end - 1024);
    let mut cut = stream();
    cut.truncate(end - 512);
    let mut second_footer = stream();
    second_footer.extend_from_slice(&stream()[end - 1536..]);
    put(&mut second_footer, end + 512 + 12, &1u64.to_le_bytes());
    assert_refused(vec![
        (stream_with(first, &128u64.to_le_bytes()), Corrupt, "marker"),
        (stream_with(first, &u64::MAX.to_le_bytes()), Corrupt, "marker"),
        (stream_with(first + 8, &u32::MAX.to_le_bytes()), Corrupt, "marker"),
        (stream_with(first + 8, &0u32.to_le_bytes()), Corrupt, "marker"),
        (stream_with(first + 8, &5u32.to_le_bytes()), Corrupt, "deflate"),
        (stream_with(first + 12, &[0xff; 8]), Corrupt, "deflate"),
        (stream_with(77, &[2]), Unsupported, "compression"),
        (stream_with(footer, &[0]), Corrupt, "footer"),
        (stream_with(footer + 12, &1u64.to_le_bytes()), Corrupt, "contradicts"),
        (stream_with(footer + 20, &64u64.to_le_bytes()), Corrupt, "contradicts"),
        (stream_with(footer + 56, &u64::MAX.to_le_bytes()), Corrupt, "footer"),
        (stream_with(footer - 512 + 12, &[2]), Corrupt, "footer"),
        (stream_with(end - 512 + 12, &[1]), Corrupt, "footer"),
        (cut, Corrupt, "footer"),
        (second_footer, Corrupt, "contradicts"),
    ]);
}

#[test]
fn a_grain_that_inflates_past_its_size_is_refused() {
    let mut codec = libdeflater::Compressor::new(libdeflater::CompressionLvl::new(9).unwrap());
    let mut bomb = vec![0; 8192];
    let len = codec.zlib_compress(&vec![7; 1 << 20], &mut bomb).unwrap();
    let mut bytes = stream();
    let table = bytes.len();
    // A grain behind everything, with a table and directory in the header instead of the footer.
    bytes.resize(table + 4 * 512 + 8192 + 512, 0);
    let marker = table + 4 * 512;
    put(&mut bytes, table, &((marker / 512) as u32).to_le_bytes());
    put(&mut bytes, marker + 8, &(len as u32).to_le_bytes());
    put(&mut bytes, marker + 12, &bomb[..len]);
    let directory = bytes.len();
    bytes.extend_from_slice(&((table / 512) as u32).to_le_bytes());
    bytes.resize(directory + 512, 0);
    put(&mut bytes, 56, &((directory / 512) as u64).to_le_bytes());
    assert_refused(vec![(bytes, ErrorKind::Corrupt, "deflate")]);
}

const TEXT: &str = "# Disk DescriptorFile\nversion=1\nCID=0000abcd\nparentCID=ffffffff\ncreateType=\"custom\"\n\
                    # Extent description\nRW 128 FLAT \"f\" 0\n";

#[test]
fn descriptors_that_cannot_be_meant_are_refused() {
    use ErrorKind::{Corrupt, Denied, LimitExceeded, Unsupported};
    let with = |from: &str, to: &str| {
        assert!(TEXT.contains(from));
        TEXT.replace(from, to).into_bytes()
    };
    let mut huge = TEXT.as_bytes().to_vec();
    huge.resize((1 << 20) + 1, b'\n');
    assert_refused(vec![
        (TEXT.into(), Denied, "\"f\""),
        (with("\"f\"", "\"/etc/passwd\""), Denied, "/etc/passwd"),
        (with("\"f\"", "\"../../x\""), Denied, "../../x"),
        (with("\"f\"", "\"/dev/sda\""), Denied, "/dev/sda"),
        (with("FLAT \"f\" 0", "SPARSE \"\u{202e}\u{7}x\""), Corrupt, "0x07"),
        (with("FLAT \"f\" 0", "SPARSE \"\u{202e}x\""), Denied, "\\u{202e}x"),
        (with("RW 128 FLAT \"f\" 0\n", ""), Corrupt, "no extent"),
        (with("custom", "fullDevice"), Unsupported, "fullDevice"),
        (with("custom", "vmfsRaw"), Unsupported, "vmfsRaw"),
        (with("RW 128", "RW 9223372036854775807"), Corrupt, "extent size"),
        (
            with("RW 128", "RW 18446744073709551616"),
            Corrupt,
            "Invalid extent line",
        ),
        (with("\"f\" 0", "\"f\" 18014398509481984"), Corrupt, "extent offset"),
        (with("createType=\"custom\"\n", ""), Corrupt, "createType"),
        (
            with("CID=0000abcd\n", "CID=0000abcd\nCID=0000abce\n"),
            Corrupt,
            "CID twice",
        ),
        (with("version=1", "version=1\0"), Corrupt, "followed by other data"),
        (huge, LimitExceeded, "1 MiB"),
        (
            with("RW 128 FLAT \"f\" 0\n", &"RW 1 FLAT \"f\" 0\n".repeat(20_000)),
            LimitExceeded,
            "extents",
        ),
    ]);
}

/// Opens a descriptor with one extent file `f`.
fn with_extent(text: &str, file: Vec<u8>) -> crate::Result<Box<dyn Image>> {
    let files = Files::default();
    files.add("f", file);
    let main = files.add("d.vmdk", text.as_bytes().to_vec());
    let limits = Limits::default();
    Vmdk.open(main, &Options::new(), &OpenEnv::closed(&limits).with_gate(&files))
}

#[test]
fn extents_that_are_not_what_the_descriptor_says_are_refused() {
    let sparse = TEXT.replace("FLAT \"f\" 0", "SPARSE \"f\"");
    let error = |text: &str, file| with_extent(text, file).err().unwrap();
    assert_eq!(error(&sparse, vec![0; 4096]).kind(), ErrorKind::NotThisFormat);
    assert_eq!(error(&sparse, TEXT.into()).kind(), ErrorKind::NotThisFormat);
    assert_eq!(error(&sparse, created(512, Options::new())).kind(), ErrorKind::Corrupt);
    let vmfs = TEXT.replace("FLAT \"f\" 0", "VMFSSPARSE \"f\"");
    assert_eq!(
        error(&vmfs, created(1 << 20, Options::new())).kind(),
        ErrorKind::NotThisFormat
    );
    let short = with_extent(TEXT, vec![0; 512]).unwrap();
    assert_eq!(short.read(0, &mut [0; 1024]).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(short.check(Repair::No, &Control::default()).unwrap().corruptions, 1);
    let wrapping = TEXT.replace(
        "RW 128 FLAT \"f\" 0\n",
        &"RW 18014398509481983 FLAT \"f\" 0\n".repeat(3),
    );
    assert_eq!(error(&wrapping, vec![0; 512]).kind(), ErrorKind::Corrupt);
}

fn open_file(path: &Path) -> crate::Result<StorageRef> {
    Ok(Arc::new(FileStorage::open(path, FileOptions::read())?))
}

/// Opens one file, whatever is asked for.
struct Always(PathBuf);

impl Gate for Always {
    fn open(&self, _: &Reference<'_>) -> crate::Result<Node> {
        Ok(Node::new(open_file(&self.0)?, "raw"))
    }
    fn create(&self, reference: &Reference<'_>) -> crate::Result<StorageRef> {
        DenyAll.create(reference)
    }
}

#[test]
fn an_extent_that_is_the_descriptor_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, TEXT).unwrap();
    let main = open_file(&path).unwrap();
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits);
    let error = Vmdk
        .open(main, &Options::new(), &env.with_gate(&Always(path)))
        .err()
        .unwrap();
    assert!(error.to_string().contains("the descriptor itself"), "{error}");
}

#[test]
fn parent_fields_that_contradict_each_other_are_refused() {
    let hint = TEXT.replace("createType", "parentFileNameHint=\"p\"\ncreateType");
    let error = with_extent(&hint, vec![0; 65536]).err().unwrap();
    assert!(error.to_string().contains("parentCID"), "{error}");
    let nameless = TEXT.replace("parentCID=ffffffff", "parentCID=00000001");
    let image = with_extent(&nameless, vec![0; 65536]).unwrap();
    assert_eq!(image.backing().unwrap().name, "cid:00000001");
}

#[test]
fn any_truncation_is_an_error_or_a_readable_image() {
    for (bytes, size) in [(stream(), 40 << 20), {
        let storage = Arc::new(MemoryStorage::new("m", created(1 << 20, Options::new())));
        let image = open_on(storage.clone()).unwrap();
        image.write(0, &[1; 3 * GRAIN], &NothingBelow).unwrap();
        image.close().unwrap();
        (storage.contents(), 1 << 20)
    }] {
        let expected = whole(
            open_on(Arc::new(MemoryStorage::new("m", bytes.clone())))
                .unwrap()
                .as_ref(),
        );
        for len in (0..1100).chain((1100..bytes.len()).step_by(1024)) {
            let storage = Arc::new(MemoryStorage::new("m", bytes[..len].to_vec()));
            let limits = Limits::default();
            let Ok(image) = Vmdk.open(storage, &Options::new(), &OpenEnv::closed(&limits)) else {
                continue;
            };
            let mut buf = vec![0; 3 * GRAIN];
            let read = image.read(0, &mut buf);
            assert!(
                read.is_err() || buf == expected[..3 * GRAIN],
                "wrong bytes from {len} bytes of {size}"
            );
        }
    }
}

/// Reads, maps and checks whatever opens; writes where it can.
fn exercise(bytes: &[u8]) {
    let limits = Limits {
        table_bytes: 1 << 20,
        virtual_size: 1 << 40,
        ..Limits::default()
    };
    let storage = || Arc::new(MemoryStorage::new("m", bytes.to_vec()));
    let env = OpenEnv::closed(&limits);
    if let Ok(image) = Vmdk.open(storage(), &Options::new(), &env) {
        let (size, mut at) = (image.virtual_size(), 0);
        for _ in 0..500 {
            let Ok(extent) = image.extent(at, size.saturating_sub(at).max(1)) else {
                break;
            };
            assert!(extent.len > 0);
            let _ = image.read(at, &mut vec![0; extent.len.min(200_000) as usize]);
            at += extent.len;
        }
        let _ = image.info();
        let _ = image.check(Repair::No, &Control::default());
    }
    if let Ok(image) = Vmdk.open(storage(), &Options::new(), &env.writable()) {
        let len = image.virtual_size().min(70_000) as usize;
        let _ = image.write(0, &vec![1; len], &NothingBelow);
        let _ = image.flush();
    }
    if let Ok(image) = Vmdk.open(storage(), &Options::new(), &env.writable().for_check()) {
        let _ = image.check(Repair::All, &Control::default());
    }
}

fn samples() -> Vec<Vec<u8>> {
    let storage = Arc::new(MemoryStorage::new(
        "m",
        created(70 << 20, Options::new().with("zeroed_grain", "on")),
    ));
    let image = open_on(storage.clone()).unwrap();
    image.write(5000, &[1; 2 * GRAIN], &NothingBelow).unwrap();
    image.write(69 << 20, &[1; 512], &NothingBelow).unwrap();
    image.close().unwrap();
    vec![storage.contents(), stream()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn flipped_bytes_never_panic(
        flips in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        for mut bytes in samples() {
            for (front, index, value) in &flips {
                // Header, descriptor and first tables; or the last 8 KiB, where a stream has its end.
                let at = if *front { index.index(30 * 512) } else { bytes.len() - 1 - index.index(8192) };
                bytes[at] ^= value;
            }
            exercise(&bytes);
        }
    }

    #[test]
    fn any_text_as_a_descriptor_never_panics(lines in proptest::collection::vec(
        prop_oneof![
            "[ -~]{0,40}",
            "(RW|RDONLY) [0-9]{1,20} (FLAT|SPARSE|ZERO|VMFS) \"[a-z]{0,3}\"( [0-9]{1,20})?",
            "(CID|parentCID|createType|parentFileNameHint)=\"?[a-f0-9]{0,9}\"?",
        ], 0..12)
    ) {
        exercise(format!("# Disk DescriptorFile\ncreateType=\"custom\"\n{}\n", lines.join("\n")).as_bytes());
    }
}

#[test]
fn a_check_tells_what_reading_refuses() {
    let image = open_to_check(sparse_with(31 * 512, &u32::MAX.to_le_bytes()));
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!(report.corruptions, 1, "{:?}", report.messages);
    let image = open_to_check(sparse_with(30 * 512, &u32::MAX.to_le_bytes()));
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert!(report.corruptions >= 1, "{:?}", report.messages);
}
