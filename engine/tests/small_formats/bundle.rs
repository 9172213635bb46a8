//! Parallels bundles in memory: what is read, where the map says it lies, what strangers may write into the descriptor.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use vdisk_engine::gate::{Gate, Node, Reference};
use vdisk_engine::image::{NothingBelow, Repair};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Control, Error, ErrorKind, Image, Limits, OpenEnv, Result, StorageRef, formats};

use crate::support::*;

const KIB: u64 = 1024;
const NAMES: [&str; 4] = ["top0", "base0", "top1", "base1"];

/// Opens the files of the bundle alone.
struct Files(HashMap<&'static str, StorageRef>);

impl Gate for Files {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        assert!(!reference.writable);
        let found = self.0.get(reference.name).cloned();
        let found = found.ok_or_else(|| Error::denied(format!("no file \"{}\"", reference.name.escape_debug())))?;
        Ok(Node::new(found, "raw"))
    }
    fn create(&self, _: &Reference<'_>) -> Result<StorageRef> {
        Err(Error::denied("nothing is made"))
    }
}

/// An expandable file with these writes.
fn expandable(size: u64, writes: &[(u64, u64, u8)]) -> StorageRef {
    let storage = created("parallels", size, &[("cluster_size", "4096")]);
    let image = open_rw(storage.clone(), "parallels").unwrap();
    for (at, len, byte) in writes {
        image.write(*at, &vec![*byte; *len as usize], &NothingBelow).unwrap();
    }
    image.close().unwrap();
    storage
}

/// Two storages of 64 KiB and 40 KiB in two states; the upper files end before their storages do. Files and what the guest sees.
fn bundle() -> (Files, Vec<u8>) {
    let mut expected = vec![0; 104 * KIB as usize];
    let mut base0 = vec![0; 64 * KIB as usize];
    base0[..8192].fill(1);
    base0[60_000..].fill(2);
    expected[..base0.len()].copy_from_slice(&base0);
    expected[4096..12_288].fill(3);
    let second = &mut expected[64 * KIB as usize..];
    second[20_480..40_960].fill(4);
    second[24_576..28_672].fill(5);
    let files: [StorageRef; 4] = [
        expandable(48 * KIB, &[(4096, 8192, 3)]),
        Arc::new(MemoryStorage::new("base0", base0)),
        expandable(32 * KIB, &[(24_576, 4096, 5)]),
        expandable(40 * KIB, &[(20_480, 20_480, 4)]),
    ];
    (Files(NAMES.into_iter().zip(files).collect()), expected)
}

fn descriptor() -> String {
    let (top, base) = (
        "{5fbaabe3-6958-40ff-92a7-860e329aab41}",
        "{11111111-2222-3333-4444-555555555555}",
    );
    let image = |guid: &str, kind: &str, name: &str| {
        format!("<Image><GUID>{guid}</GUID><Type>{kind}</Type><File>{name}</File></Image>")
    };
    let storage = |start: u64, end: u64, images: [String; 2]| {
        let (start, end, images) = (start * 2, end * 2, images.concat());
        format!("<Storage><Start>{start}</Start><End>{end}</End>{images}</Storage>")
    };
    let shot = |guid: &str, parent: &str| format!("<Shot><GUID>{guid}</GUID><ParentGUID>{parent}</ParentGUID></Shot>");
    let nil = "{00000000-0000-0000-0000-000000000000}";
    let storages = [
        storage(
            0,
            64,
            [image(base, "Plain", NAMES[1]), image(top, "Compressed", NAMES[0])],
        ),
        storage(
            64,
            104,
            [image(top, "Compressed", NAMES[2]), image(base, "Compressed", NAMES[3])],
        ),
    ];
    format!(
        "<?xml version='1.0'?>\n<Parallels_disk_image Version=\"1.0\"><Disk_Parameters><Disk_size>208</Disk_size></Disk_Parameters>\
         <StorageData>{}</StorageData><Snapshots>{}{}</Snapshots></Parallels_disk_image>",
        storages.concat(),
        shot(top, base),
        shot(base, nil)
    )
}

fn open(text: &str, files: &Files, limits: &Limits) -> Result<Box<dyn Image>> {
    let main = Arc::new(MemoryStorage::new("DiskDescriptor.xml", text.as_bytes().to_vec()));
    let env = OpenEnv::closed(limits).with_gate(files);
    formats::by_name("parallels")?.open(main, &Options::new(), &env)
}

#[test]
fn the_upper_state_shows_over_the_lower_one() {
    let (files, expected) = bundle();
    let image = open(&descriptor(), &files, &Limits::default()).unwrap();
    assert_eq!(image.virtual_size(), expected.len() as u64);
    matches_model(image.as_ref(), &expected);
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0));
    assert_eq!(image.storages().len(), 5);
}

#[test]
fn a_file_that_is_not_beside_the_descriptor_is_never_asked_for() {
    let (files, _) = bundle();
    for name in ["../base0", "/etc/../base0/..", "sub/base0", "C:\\base0", "."] {
        let text = descriptor().replace("<File>base0</File>", &format!("<File>{name}</File>"));
        let error = open(&text, &files, &Limits::default()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
    }
    let text = descriptor().replace("base0", "/etc/passwd");
    let error = open(&text, &files, &Limits::default()).err().unwrap();
    assert!(
        error.kind() == ErrorKind::Denied && error.to_string().contains("\"passwd\""),
        "{error}"
    );
}

#[test]
fn limits_hold_for_bundles() {
    let (files, _) = bundle();
    let kind = |limits: Limits| open(&descriptor(), &files, &limits).err().map(|e| e.kind());
    let usual = Limits::default;
    assert_eq!(kind(Limits { files: 3, ..usual() }), Some(ErrorKind::LimitExceeded));
    assert_eq!(
        kind(Limits {
            chain_depth: 1,
            ..usual()
        }),
        Some(ErrorKind::LimitExceeded)
    );
    assert_eq!(
        kind(Limits {
            virtual_size: 100 * KIB,
            ..usual()
        }),
        Some(ErrorKind::LimitExceeded)
    );
    assert_eq!(
        kind(Limits {
            files: 4,
            chain_depth: 2,
            ..usual()
        }),
        None
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_changed_descriptor_makes_it_panic(
        edits in prop::collection::vec((any::<usize>(), prop::sample::select(b"0189<>/{}-&!a\"\x00\xff".to_vec())), 1..6),
        cut in any::<usize>(),
    ) {
        let (files, _) = bundle();
        let mut bytes = descriptor().into_bytes();
        let len = bytes.len();
        for (at, byte) in edits {
            bytes[at % len] = byte;
        }
        if cut % 4 == 0 {
            bytes.truncate(cut / 4 % len);
        }
        let limits = Limits { virtual_size: 1 << 40, ..Limits::default() };
        let main = Arc::new(MemoryStorage::new("x", bytes));
        let env = OpenEnv::closed(&limits).with_gate(&files);
        if let Ok(image) = formats::by_name("parallels").unwrap().open(main, &Options::new(), &env) {
            let size = image.virtual_size();
            let mut at = 0;
            for _ in 0..64 {
                if at >= size {
                    break;
                }
                let extent = image.extent(at, size - at).unwrap();
                prop_assert!(extent.len > 0 && extent.len <= size - at);
                at += extent.len;
            }
            let mut buf = vec![0; size.min(200_000) as usize];
            let _ = image.read(0, &mut buf);
        }
    }
}
