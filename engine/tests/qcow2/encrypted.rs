//! Encrypted images by themselves: keys that are missing or wrong, growth, snapshots, preallocation, key slots, compression.

use std::sync::Arc;

use vdisk_engine::image::{ExtentKind, NothingBelow, Preallocation, Repair, Resize};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Control, ErrorKind, Image};

use crate::support::{Files, Passphrase, assert_clean, encrypted, opening, pattern, read_all};

const SIZE: u64 = 1 << 20;

/// Create options beside those of encryption.
type Options2 = &'static [(&'static str, &'static str)];

struct Sample {
    files: Files,
    storage: Arc<MemoryStorage>,
    with: Options,
}

impl Sample {
    fn new(format: &'static str, size: u64, more: Options2) -> Self {
        let mut list = encrypted(format);
        list.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let created = list
            .iter()
            .fold(Options::new(), |o, (name, value)| o.with(*name, value.clone()));
        let (files, storage) = (Files::default(), Arc::new(MemoryStorage::empty()));
        files.create_on(storage.clone(), size, created, None);
        Self {
            files,
            storage,
            with: opening(&list),
        }
    }
    fn open(&self, writable: bool) -> Box<dyn Image> {
        self.files
            .open_with(self.storage.clone(), writable, &self.with)
            .unwrap()
    }
    fn locked(&self) -> Box<dyn Image> {
        self.files.open_on(self.storage.clone(), false).unwrap()
    }
}

#[test]
fn without_the_secret_metadata_is_there_and_data_is_not() {
    for format in ["luks", "aes"] {
        let sample = Sample::new(format, SIZE, &[]);
        let image = sample.open(true);
        image.write(0, &[7; 70_000], &NothingBelow).unwrap();
        image.snapshots().unwrap().create("one", (1, 2)).unwrap();
        image.close().unwrap();
        let image = sample.locked();
        let info = image.info().unwrap();
        assert!(info.encrypted);
        assert_eq!(info.specific.unwrap()["encrypt"]["format"], format);
        assert_eq!(image.snapshots().unwrap().list().unwrap().len(), 1);
        assert_clean(&*image);
        let extent = image.extent(0, SIZE).unwrap();
        assert_eq!(extent.len, 131_072);
        assert!(matches!(
            extent.kind,
            ExtentKind::Data {
                at: None,
                direct: false
            }
        ));
        assert_eq!(image.missing_key().unwrap().kind(), ErrorKind::WrongKey);
        for (at, len) in [(0, 512), (100, 5), (65_000, 5000)] {
            let error = image.read(at, &mut vec![0; len]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WrongKey);
            assert!(error.to_string().contains("encrypt.key-secret"), "{error}");
        }
        let writable = sample.files.open_on(sample.storage.clone(), true).unwrap();
        let error = writable.write(1000, &[1; 100], &NothingBelow).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        drop(writable);
        let mut first = vec![0; 70_000];
        sample.open(false).read(0, &mut first).unwrap();
        assert!(first == [7; 70_000], "a write without the key changed something");
    }
}

#[test]
fn a_wrong_passphrase_and_a_wrong_format_are_told() {
    let sample = Sample::new("luks", SIZE, &[]);
    let open = |with: Options| {
        sample
            .files
            .open_with(sample.storage.clone(), false, &with)
            .err()
            .map(|e| e.kind())
    };
    let key = |id: &str| Options::new().with("encrypt.key-secret", id);
    assert_eq!(open(key("wrong")), Some(ErrorKind::WrongKey));
    assert_eq!(open(key("none")), Some(ErrorKind::WrongKey));
    assert_eq!(
        open(key("s").with("encrypt.format", "aes")),
        Some(ErrorKind::InvalidArgument)
    );
    assert_eq!(open(key("s").with("encrypt.format", "luks")), None);
    let plain = Arc::new(MemoryStorage::empty());
    sample.files.create_on(plain.clone(), SIZE, Options::new(), None);
    let luks = Options::new().with("encrypt.format", "luks");
    let error = sample.files.open_with(plain, false, &luks).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn what_is_stored_is_not_what_is_read() {
    for format in ["luks", "aes"] {
        let sample = Sample::new(format, SIZE, &[]);
        let image = sample.open(true);
        image.write(0, &[0x5a; SIZE as usize], &NothingBelow).unwrap();
        image.close().unwrap();
        let plain = sample.storage.contents();
        assert!(
            !plain.windows(16).any(|w| w == [0x5a; 16]),
            "{format}: plain bytes in the file"
        );
        assert!(read_all(&*sample.open(false)) == [0x5a; SIZE as usize]);
    }
}

#[test]
fn growing_shows_zeroes_behind_a_bulk_write() {
    for format in ["luks", "aes"] {
        let end = SIZE - 1536;
        let sample = Sample::new(format, end, &[]);
        let image = sample.open(true);
        let bulk = image.bulk().unwrap();
        assert!(!bulk.sparse_store());
        let data = pattern(end as usize);
        let placement = bulk.place(0, end, None).unwrap();
        bulk.store(&placement, &data).unwrap();
        image.close().unwrap();
        image
            .resize(&Resize {
                virtual_size: SIZE + 4096,
                ..Resize::default()
            })
            .unwrap();
        let seen = read_all(&*image);
        assert!(
            seen[..end as usize] == data && seen[end as usize..].iter().all(|b| *b == 0),
            "{format}"
        );
        assert_clean(&*image);
    }
}

#[test]
fn snapshots_keep_what_they_held() {
    let sample = Sample::new("luks", SIZE, &[("cluster_size", "4096")]);
    let image = sample.open(true);
    let data = pattern(SIZE as usize);
    image.write(0, &data, &NothingBelow).unwrap();
    image.snapshots().unwrap().create("one", (1, 2)).unwrap();
    image.write(5000, &[1; 300_000], &NothingBelow).unwrap();
    let old = image.snapshots().unwrap().open("one").unwrap();
    assert!(read_all(&*old) == data);
    image.snapshots().unwrap().apply("one").unwrap();
    assert!(read_all(&*image) == data);
    assert_clean(&*image);
}

#[test]
fn preallocated_images_read_as_zeroes() {
    for format in ["luks", "aes"] {
        for more in [
            &[("preallocation", "metadata")][..],
            &[("preallocation", "falloc")],
            &[("preallocation", "full")],
            &[("preallocation", "full"), ("compat", "0.10")],
            &[("preallocation", "metadata"), ("extended_l2", "on")],
            &[("preallocation", "metadata"), ("data_file", "data")],
            &[("data_file", "data"), ("data_file_raw", "on")],
        ] {
            let sample = Sample::new(format, SIZE, more);
            assert!(
                read_all(&*sample.open(false)).iter().all(|b| *b == 0),
                "{format} {more:?}"
            );
            let image = sample.open(true);
            image.write(1000, &[9; 3000], &NothingBelow).unwrap();
            let mut seen = vec![0; 5000];
            image.read(0, &mut seen).unwrap();
            assert!(
                seen[..1000].iter().chain(&seen[4000..]).all(|b| *b == 0),
                "{format} {more:?}"
            );
            assert!(seen[1000..4000] == [9; 3000], "{format} {more:?}");
            image
                .resize(&Resize {
                    virtual_size: 2 * SIZE,
                    preallocation: Preallocation::Metadata,
                    ..Resize::default()
                })
                .unwrap();
            assert!(
                read_all(&*image)[4000..].iter().all(|b| *b == 0),
                "{format} {more:?}: after growing"
            );
            assert_clean(&*image);
        }
    }
}

#[test]
fn compressing_into_an_encrypted_image_is_refused() {
    let sample = Sample::new("luks", SIZE, &[]);
    let image = sample.open(true);
    let cluster = vec![1; 65_536];
    let error = image.write_compressed(0, &cluster).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = image
        .bulk()
        .unwrap()
        .encode(&cluster, &mut Default::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn key_slots_change_inside_the_image() {
    use vdisk_engine::crypto::luks::{EraseKeys, KdfCost, KeyEnv, KeyWork, NewKey};
    let sample = Sample::new("luks", SIZE, &[]);
    let image = sample.open(true);
    image.write(0, &[3; 512], &NothingBelow).unwrap();
    let limits = vdisk_engine::Limits::default();
    let env = KeyEnv {
        work: KeyWork::within(&limits),
        random: &|buf| buf.fill(0x33),
    };
    let new = NewKey {
        passphrase: b"letmeout",
        slot: None,
        cost: KdfCost::Iterations(1000),
        overwrite: false,
    };
    let slots = image.key_slots().unwrap();
    assert_eq!(slots.add(b"letmein", &new, &env).unwrap(), 1);
    assert_eq!(slots.erase(EraseKeys::Matching(b"letmein"), false, &env).unwrap(), [0]);
    let error = slots.erase(EraseKeys::Slot(1), false, &env).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    image.close().unwrap();
    let open = |id: &str| {
        let with = Options::new().with("encrypt.key-secret", id);
        sample.files.open_with(sample.storage.clone(), false, &with)
    };
    assert_eq!(open("s").err().map(|e| e.kind()), Some(ErrorKind::WrongKey));
    let mut sector = [0; 512];
    let image = open("wrong").unwrap();
    image.read(0, &mut sector).unwrap();
    assert_eq!(sector, [3; 512]);
    assert_clean(&*image);
}

#[test]
fn an_image_without_luks_has_no_key_slots() {
    assert!(Sample::new("aes", SIZE, &[]).open(true).key_slots().is_none());
}

#[test]
fn a_lost_refcount_of_the_luks_header_is_found_and_mended() {
    let sample = Sample::new("luks", SIZE, &[]);
    let mut bytes = sample.storage.contents();
    let at = u64::from_be_bytes(bytes[120..128].try_into().unwrap());
    let entry = 2 * 65_536 + (at as usize >> 16) * 2;
    bytes[entry..entry + 2].copy_from_slice(&[0, 0]);
    let storage = Arc::new(MemoryStorage::new("damaged", bytes));
    let limits = vdisk_engine::Limits::default();
    let env = vdisk_engine::OpenEnv::closed(&limits)
        .with_secrets(&Passphrase)
        .writable()
        .for_check();
    let driver = vdisk_engine::formats::by_name("qcow2").unwrap();
    let image = driver.open(storage.clone(), &Options::new(), &env).unwrap();
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert_eq!(report.corruptions_fixed, 1, "{:?}", report.messages);
    image.close().unwrap();
    let image = driver.open(storage, &sample.with, &env).unwrap();
    assert_clean(&*image);
}
