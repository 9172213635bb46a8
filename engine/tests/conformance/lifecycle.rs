//! Creating, recognising, resizing, checking, overlays, converting.

use vdisk_engine::formats::{FormatDriver, detect};
use vdisk_engine::image::Resize;
use vdisk_engine::ops::convert::{CopyOptions, convert};
use vdisk_engine::ops::resize::resize;
use vdisk_engine::options::OptionKind;
use vdisk_engine::{Chain, Control, ErrorKind};

use crate::support::{Files, Passphrase, assert_clean, contents, drivers, node};

const SIZES: [u64; 5] = [512, 65_536, 1 << 20, (3 << 20) + 512, 70 << 20];

#[test]
fn a_new_image_has_its_size_reads_as_zeroes_and_is_recognised() {
    for driver in drivers(|d| d.capabilities().create) {
        for size in SIZES {
            let files = Files::default();
            files.create("disk", driver.name(), size, None).unwrap();
            let chain = files.open("disk", driver.name(), false).unwrap();
            assert!(
                chain.virtual_size() >= size,
                "{}: {} for {size}",
                driver.name(),
                chain.virtual_size()
            );
            let zeroes = contents(&chain).iter().all(|b| *b == 0);
            assert!(zeroes || !driver.capabilities().zero, "{}", driver.name());
            assert_clean(&files, "disk", driver);
            let found = detect(files.get("disk").as_ref()).unwrap();
            assert_eq!(found[0].0.name(), driver.name(), "{size}");
        }
    }
}

#[test]
fn an_image_opened_for_reading_refuses_writes() {
    for driver in drivers(|d| d.capabilities().create && d.capabilities().write) {
        let files = Files::default();
        files.create("disk", driver.name(), 1 << 20, None).unwrap();
        let before = files.contents();
        let limits = vdisk_engine::Limits::default();
        let storage =
            std::sync::Arc::new(vdisk_engine::storage::MemoryStorage::new("disk", before[0].1.clone()).read_only());
        if before.len() > 1 {
            continue; // Of several files: the gate decides for each.
        }
        let node = node(storage, driver.name());
        let chain = Chain::open(node, &vdisk_engine::OpenEnv::closed(&limits).with_secrets(&Passphrase)).unwrap();
        assert_eq!(
            chain.write(0, &[1; 512]).unwrap_err().kind(),
            ErrorKind::Denied,
            "{}",
            driver.name()
        );
    }
}

#[test]
fn what_was_converted_reads_the_same_and_does_not_depend_on_the_workers() {
    let mut bytes = vec![0u8; 9 << 20];
    for (i, b) in bytes[100_000..3_000_000].iter_mut().enumerate() {
        *b = (i / 700) as u8;
    }
    bytes[8 << 20..][..4096].fill(9);
    let source = Files::default();
    source.add("raw", bytes.clone());
    let source = source.open("raw", "raw", false).unwrap();
    for driver in drivers(|d| d.capabilities().create) {
        for compress in [false, true] {
            if compress && !driver.capabilities().compress {
                continue;
            }
            let mut outputs = Vec::new();
            for workers in [1, 2, 5] {
                let files = Files::default();
                files.create("disk", driver.name(), bytes.len() as u64, None).unwrap();
                let target = files.open("disk", driver.name(), true).unwrap();
                let options = CopyOptions {
                    workers,
                    compress,
                    ..CopyOptions::default()
                };
                convert(&source, target.top(), &options, &Control::default()).unwrap();
                drop(target);
                let chain = files.open("disk", driver.name(), false).unwrap();
                let read = contents(&chain);
                assert!(
                    read[..bytes.len()] == bytes && read[bytes.len()..].iter().all(|b| *b == 0),
                    "{}",
                    driver.name()
                );
                assert_clean(&files, "disk", driver);
                outputs.push(files.contents());
            }
            assert!(
                outputs.windows(2).all(|w| w[0] == w[1]),
                "{}: output depends on the workers",
                driver.name()
            );
        }
    }
}

#[test]
fn growing_adds_zeroes_and_keeps_the_rest() {
    for driver in drivers(|d| d.capabilities().create && d.capabilities().write && d.capabilities().grow) {
        let files = Files::default();
        files.create("disk", driver.name(), 1 << 20, None).unwrap();
        let chain = files.open("disk", driver.name(), true).unwrap();
        let old = chain.virtual_size();
        chain.write(0, &vec![3; old as usize]).unwrap();
        resize(
            &chain,
            &Resize {
                virtual_size: 50 << 20,
                ..Resize::default()
            },
        )
        .unwrap();
        drop(chain);
        let chain = files.open("disk", driver.name(), false).unwrap();
        assert!(chain.virtual_size() >= 50 << 20, "{}", driver.name());
        let bytes = contents(&chain);
        let (head, tail) = bytes.split_at(old as usize);
        assert!(
            head.iter().all(|b| *b == 3) && (tail.iter().all(|b| *b == 0) || !driver.capabilities().zero),
            "{}",
            driver.name()
        );
        assert_clean(&files, "disk", driver);
    }
}

#[test]
fn shrinking_needs_permission_and_keeps_the_rest() {
    for driver in drivers(|d| d.capabilities().create && d.capabilities().write && d.capabilities().shrink) {
        let files = Files::default();
        files.create("disk", driver.name(), 20 << 20, None).unwrap();
        let chain = files.open("disk", driver.name(), true).unwrap();
        chain.write(0, &vec![3; 20 << 20]).unwrap();
        let mut to = Resize {
            virtual_size: 5 << 20,
            ..Resize::default()
        };
        assert_eq!(
            resize(&chain, &to).unwrap_err().kind(),
            ErrorKind::InvalidArgument,
            "{}",
            driver.name()
        );
        to.shrink = true;
        resize(&chain, &to).unwrap();
        drop(chain);
        let chain = files.open("disk", driver.name(), false).unwrap();
        assert_eq!(chain.virtual_size(), 5 << 20, "{}", driver.name());
        assert!(contents(&chain).iter().all(|b| *b == 3), "{}", driver.name());
        assert_clean(&files, "disk", driver);
    }
}

/// The one format that a layer below may have, where a driver's options say so.
fn only_base_format(driver: &dyn FormatDriver) -> Option<&'static str> {
    let option = driver.create_options().iter().find(|o| o.name == "backing_fmt")?;
    match option.kind {
        OptionKind::Choice(&[only]) => Some(only),
        _ => None,
    }
}

#[test]
fn an_overlay_shows_its_base_until_written_and_leaves_it_alone() {
    for driver in drivers(|d| d.capabilities().create && d.capabilities().write && d.capabilities().backing) {
        let files = Files::default();
        let base_format = only_base_format(driver).unwrap_or(driver.name());
        files.create("base", base_format, 4 << 20, None).unwrap();
        let base = files.open("base", base_format, true).unwrap();
        let size = base.virtual_size();
        base.write(1 << 20, &vec![7; 2 << 20]).unwrap();
        base.top().close().unwrap();
        drop(base);
        let before = files.get("base").contents();
        files
            .create("top", driver.name(), size, Some(("base", base_format)))
            .unwrap();
        let top = files.open("top", driver.name(), true).unwrap();
        let mut expected = vec![0; size as usize];
        expected[1 << 20..3 << 20].fill(7);
        assert!(contents(&top) == expected, "{}", driver.name());
        for (offset, len) in [
            ((1 << 20) - 512, 1024),
            ((2 << 20) + 512, 512),
            ((3 << 20) - 512, 70_000 / 512 * 512),
        ] {
            top.write(offset as u64, &vec![9; len]).unwrap();
            expected[offset..offset + len].fill(9);
        }
        top.top().close().unwrap();
        drop(top);
        assert!(
            contents(&files.open("top", driver.name(), false).unwrap()) == expected,
            "{}",
            driver.name()
        );
        assert!(
            files.get("base").contents() == before,
            "{}: the base was changed",
            driver.name()
        );
        assert_clean(&files, "top", driver);
    }
}

/// For each driver that can grow overlays: 1 MiB of that name over a full raw base of 3 MiB.
fn over_a_longer_base(name: &str) -> impl Iterator<Item = (&'static dyn FormatDriver, Files)> {
    let fitting = drivers(|d| {
        d.capabilities().create && d.capabilities().write && d.capabilities().backing && d.capabilities().grow
    });
    fitting.into_iter().filter_map(move |driver| {
        let files = Files::default();
        files.create("base", "raw", 3 << 20, None).unwrap();
        let base = files.open("base", "raw", true).unwrap();
        base.write(0, &vec![7; 3 << 20]).unwrap();
        drop(base);
        // Some take a base of their own format only.
        let created = files.create(name, driver.name(), 1 << 20, Some(("base", "raw")));
        created.is_ok().then_some((driver, files))
    })
}

#[test]
fn what_a_longer_base_has_stays_hidden_when_an_overlay_grows() {
    for (driver, files) in over_a_longer_base("top") {
        let top = files.open("top", driver.name(), true).unwrap();
        let to = Resize {
            virtual_size: 4 << 20,
            ..Resize::default()
        };
        if resize(&top, &to).is_err_and(|e| e.kind() == ErrorKind::Unsupported) {
            continue; // Overlays cannot be resized.
        }
        drop(top);
        let bytes = contents(&files.open("top", driver.name(), false).unwrap());
        let (old, new) = bytes.split_at(1 << 20);
        assert!(old.iter().all(|b| *b == 7), "{}", driver.name());
        assert!(
            new.iter().all(|b| *b == 0),
            "{}: the base shows in the new part",
            driver.name()
        );
        assert_clean(&files, "top", driver);
    }
}

#[test]
fn what_a_longer_base_has_stays_hidden_when_a_commit_grows_the_layer_over_it() {
    for (driver, files) in over_a_longer_base("middle") {
        if files
            .create("top", driver.name(), 2 << 20, Some(("middle", driver.name())))
            .is_err()
        {
            continue;
        }
        let expected = contents(&files.open("top", driver.name(), false).unwrap());
        assert!(expected[1 << 20..].iter().all(|b| *b == 0), "{}", driver.name());
        let limits = vdisk_engine::Limits::default();
        let env = vdisk_engine::OpenEnv::closed(&limits).with_gate(&files).writable();
        let chain = Chain::open_writable(node(files.get("top"), driver.name()), &env, &[0, 1]).unwrap();
        let copy = CopyOptions::default();
        if vdisk_engine::ops::commit::commit(&chain, 1, true, &copy, &Control::default())
            .is_err_and(|e| e.kind() == ErrorKind::Unsupported)
        {
            continue; // Overlays cannot be resized.
        }
        drop(chain);
        for name in ["middle", "top"] {
            let bytes = contents(&files.open(name, driver.name(), false).unwrap());
            assert!(bytes == expected, "{}: {name} shows its base", driver.name());
        }
    }
}
