//! A crash between any two writes loses nothing that was flushed and corrupts nothing.

use std::sync::Arc;

use vdisk_engine::image::{NothingBelow, Resize};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{Fault, FaultyStorage, MemoryStorage};
use vdisk_engine::{Image, Result};

use crate::support::{Files, Scratch, assert_qemu_clean, opening, read_all};

const SIZE: u64 = 400 << 10;

/// What the guest may see after a crash: for each byte what was flushed, or any value written since.
struct Model {
    now: Vec<u8>,
    /// Values a byte may have: as flushed, and all since.
    allowed: Vec<Vec<u8>>,
}

impl Model {
    fn new() -> Self {
        Self {
            now: vec![0; SIZE as usize],
            allowed: vec![vec![0]; SIZE as usize / 512],
        }
    }
    fn set(&mut self, at: u64, len: u64, value: u8) {
        self.now[at as usize..(at + len) as usize].fill(value);
        for sector in at / 512..(at + len) / 512 {
            self.allowed[sector as usize].push(value);
        }
    }
    fn flushed(&mut self) {
        for (sector, allowed) in self.allowed.iter_mut().enumerate() {
            *allowed = vec![self.now[sector * 512]];
        }
    }
    fn check(&self, seen: &[u8], what: &str) {
        for (sector, bytes) in seen.chunks(512).enumerate().take(self.allowed.len()) {
            let value = bytes[0];
            assert!(bytes.iter().all(|b| *b == value), "{what}: sector {sector} is torn");
            let allowed = &self.allowed[sector];
            assert!(
                allowed.contains(&value),
                "{what}: sector {sector} is {value}, allowed {allowed:?}"
            );
        }
    }
}

/// Runs a script against an image on a storage that freezes at each change in turn.
fn at_every_change(options: &[(&str, &str)], leaks: bool, script: &dyn Fn(&dyn Image, &mut Model) -> Result<()>) {
    let files = Files::default();
    let fresh = Arc::new(MemoryStorage::empty());
    let mut create = Options::new();
    for (name, value) in options {
        create.set(*name, *value);
    }
    files.create_on(fresh.clone(), SIZE, create, None);
    let start = fresh.contents();
    let owned: Vec<_> = options
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    let with = opening(&owned);
    let total = {
        let storage = Arc::new(FaultyStorage::new(start.clone()));
        let image = files.open_with(storage.clone(), true, &with).unwrap();
        script(&*image, &mut Model::new()).unwrap();
        image.close().unwrap();
        storage.changes()
    };
    let scratch = Scratch::new();
    let qemu = e2e::tools::have(&["qemu-img"]);
    for fault in [Fault::Freeze, Fault::Tear] {
        for n in 0..total {
            let what = format!("{options:?} {fault:?} at change {n} of {total}");
            let storage = Arc::new(FaultyStorage::new(start.clone()));
            let image = files.open_with(storage.clone(), true, &with).unwrap();
            storage.plan(n, fault);
            let mut model = Frozen {
                model: Model::new(),
                storage: storage.clone(),
                limit: n,
            };
            model.run(&*image, script);
            drop(image);
            let left = storage.contents();
            let again = Arc::new(MemoryStorage::new("left", left));
            // A writable open repairs what is marked dirty.
            let image = files
                .open_with(again.clone(), true, &with)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            model.model.check(&read_all(&*image), &what);
            let report = image
                .check(vdisk_engine::image::Repair::No, &vdisk_engine::Control::default())
                .unwrap();
            assert_eq!(report.corruptions, 0, "{what}: {:#?}", report.messages);
            image.close().unwrap();
            if qemu && n % 3 == 0 {
                assert_qemu_clean(&again.contents(), &scratch, leaks, &what);
            }
        }
    }
    println!("{options:?}: {} crash points", total * 2);
}

/// A model that stops learning about flushes once the storage is frozen.
struct Frozen {
    model: Model,
    storage: Arc<FaultyStorage>,
    limit: u64,
}

impl Frozen {
    fn run(&mut self, image: &dyn Image, script: &dyn Fn(&dyn Image, &mut Model) -> Result<()>) {
        let (storage, limit) = (self.storage.clone(), self.limit);
        let start = storage.changes();
        FLUSH_COUNTS.with(|f| *f.borrow_mut() = Some(Box::new(move || storage.changes() - start <= limit)));
        let _ = script(image, &mut self.model);
        FLUSH_COUNTS.with(|f| *f.borrow_mut() = None);
    }
}

type Probe = Box<dyn Fn() -> bool>;

thread_local! {
    /// Tells whether a flush that just returned really happened.
    static FLUSH_COUNTS: std::cell::RefCell<Option<Probe>> = const { std::cell::RefCell::new(None) };
}

fn flush(image: &dyn Image, model: &mut Model) -> Result<()> {
    image.flush()?;
    let real = FLUSH_COUNTS.with(|f| f.borrow().as_ref().is_none_or(|real| real()));
    if real {
        model.flushed();
    }
    Ok(())
}

fn write(image: &dyn Image, model: &mut Model, at: u64, len: u64, value: u8) -> Result<()> {
    model.set(at, len, value);
    image.write(at, &vec![value; len as usize], &NothingBelow)
}

fn zero(image: &dyn Image, model: &mut Model, at: u64, len: u64) -> Result<()> {
    model.set(at, len, 0);
    image.write_zeroes(at, len, true, &NothingBelow)
}

fn writes(image: &dyn Image, model: &mut Model) -> Result<()> {
    write(image, model, 0, 4096, 1)?;
    flush(image, model)?;
    write(image, model, 2048, 70 << 10, 2)?;
    write(image, model, 300 << 10, 10 << 10, 3)?;
    flush(image, model)?;
    zero(image, model, 8 << 10, 64 << 10)?;
    write(image, model, 200 << 10, 64 << 10, 4)?;
    flush(image, model)?;
    model.set(128 << 10, 64 << 10, 0);
    image.discard(128 << 10, 64 << 10)?;
    write(image, model, 16 << 10, 512, 5)?;
    write(image, model, 128 << 10, 130 << 10, 6)?;
    flush(image, model)
}

const SHAPES: [&[(&str, &str)]; 6] = [
    &[("cluster_size", "512"), ("refcount_bits", "64")],
    &[("cluster_size", "4096")],
    &[("cluster_size", "4096"), ("compat", "0.10")],
    &[("cluster_size", "16384"), ("extended_l2", "on")],
    &[("cluster_size", "65536"), ("refcount_bits", "1")],
    &[("cluster_size", "1024"), ("lazy_refcounts", "on")],
];

#[test]
fn writes_zeroes_and_discards_survive() {
    for options in SHAPES {
        at_every_change(options, true, &writes);
    }
}

#[test]
fn encrypted_writes_and_resizing_survive() {
    let luks = [
        ("cluster_size", "4096"),
        ("encrypt.format", "luks"),
        ("encrypt.key-secret", "s"),
        ("encrypt.cipher-alg", "aes-128"),
        ("encrypt.iter-time", "10"),
    ];
    at_every_change(&luks, true, &|image, model| {
        writes(image, model)?;
        image.resize(&Resize {
            virtual_size: 1 << 20,
            ..Resize::default()
        })
    });
}

#[test]
fn compressed_writes_survive() {
    for options in [
        &[("cluster_size", "4096")][..],
        &[("cluster_size", "65536"), ("compression_type", "zstd")],
    ] {
        at_every_change(options, true, &|image, model| {
            let cluster = image.info()?.cluster_size.unwrap_or(0);
            for round in 1..4u8 {
                for n in 0..6 {
                    let at = n * cluster;
                    model.set(at, cluster.min(SIZE - at), round * 16 + n as u8);
                    image.write_compressed(at, &vec![round * 16 + n as u8; cluster.min(SIZE - at) as usize])?;
                }
                flush(image, model)?;
            }
            Ok(())
        });
    }
}

#[test]
fn resizing_survives() {
    for options in SHAPES {
        at_every_change(options, true, &|image, model| {
            write(image, model, 0, 100 << 10, 1)?;
            flush(image, model)?;
            image.resize(&Resize {
                virtual_size: 4 << 20,
                ..Resize::default()
            })?;
            write(image, model, 100 << 10, 100 << 10, 2)?;
            flush(image, model)?;
            image.resize(&Resize {
                virtual_size: SIZE,
                shrink: true,
                ..Resize::default()
            })
        });
    }
}

#[test]
fn snapshots_survive() {
    // Version 2 has no mark for "count anew", and one bit has no room for snapshots.
    for options in SHAPES
        .iter()
        .filter(|o| !o.contains(&("compat", "0.10")) && !o.contains(&("refcount_bits", "1")))
    {
        at_every_change(options, true, &|image, model| {
            let snapshots = image.snapshots().unwrap();
            write(image, model, 0, 100 << 10, 1)?;
            flush(image, model)?;
            snapshots.create("one", (0, 0))?;
            write(image, model, 50 << 10, 100 << 10, 2)?;
            flush(image, model)?;
            for (sector, allowed) in model.allowed.iter_mut().enumerate() {
                allowed.push(u8::from(sector < 200));
            }
            snapshots.apply("one")?;
            snapshots.delete("one")
        });
    }
}

#[test]
fn amending_survives() {
    at_every_change(&[("cluster_size", "4096")], true, &|image, model| {
        write(image, model, 0, 100 << 10, 1)?;
        zero(image, model, 4096, 8192)?;
        flush(image, model)?;
        let amend = |name: &str, value: &str| {
            image.amend(
                &Options::new().with(name, value),
                false,
                &vdisk_engine::Control::default(),
            )
        };
        amend("refcount_bits", "64")?;
        amend("refcount_bits", "16")?;
        amend("compat", "0.10")?;
        amend("compat", "1.1")
    });
}

#[test]
fn bitmaps_survive() {
    at_every_change(&[("cluster_size", "4096")], true, &|image, model| {
        let bitmaps = image.bitmaps().unwrap();
        bitmaps.add("one", 4096, true)?;
        bitmaps.add("two", 512, false)?;
        write(image, model, 0, 100 << 10, 1)?;
        image.close()?;
        bitmaps.mark("two", &[(0, 4096)])?;
        image.resize(&Resize {
            virtual_size: 2 << 20,
            ..Resize::default()
        })?;
        bitmaps.remove("one")
    });
}

#[test]
fn a_write_that_fails_leaves_the_image_usable() {
    let files = Files::default();
    let fresh = Arc::new(MemoryStorage::empty());
    files.create_on(fresh.clone(), SIZE, Options::new().with("cluster_size", "4096"), None);
    for n in 0..60 {
        let storage = Arc::new(FaultyStorage::new(fresh.contents()));
        let image = files.open_on(storage.clone(), true).unwrap();
        storage.plan(n, Fault::FailOnce(std::io::ErrorKind::StorageFull));
        let mut model = Model::new();
        let mut failed = false;
        for part in 0..8 {
            model.set(part * 32768, 10240, part as u8 + 1);
            failed |= image
                .write(part * 32768, &[part as u8 + 1; 10240], &NothingBelow)
                .is_err();
            failed |= image.flush().is_err();
        }
        if image.close().is_ok() {
            let image = files
                .open_on(Arc::new(MemoryStorage::new("m", storage.contents())), false)
                .unwrap();
            model.check(&read_all(&*image), &format!("change {n} fails: {failed}"));
            let report = image
                .check(vdisk_engine::image::Repair::No, &vdisk_engine::Control::default())
                .unwrap();
            assert_eq!(report.corruptions, 0, "{n}: {:#?}", report.messages);
        }
    }
}
