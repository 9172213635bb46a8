//! What a pool opens and what it refuses.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use rustix::fs::RenameFlags;

use super::*;

fn pool() -> (tempfile::TempDir, PoolFolder) {
    let dir = tempfile::tempdir().unwrap();
    let pool = PoolFolder::open("p", &dir.path().join("pool")).unwrap();
    (dir, pool)
}

#[test]
fn nothing_outside_the_folder_is_opened() {
    let (dir, pool) = pool();
    std::fs::write(dir.path().join("secret"), b"s").unwrap();
    symlink("../secret", pool.path().join("link")).unwrap();
    symlink("../", pool.path().join("folder")).unwrap();
    std::fs::hard_link(dir.path().join("secret"), pool.path().join("hard")).unwrap();
    std::fs::create_dir(pool.path().join("dir")).unwrap();
    let fifo = pool.path().join("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(fifo)
            .status()
            .unwrap()
            .success()
    );
    let names = [
        "link",
        "folder",
        "hard",
        "dir",
        "fifo",
        "../secret",
        "folder/secret",
        "/etc/passwd",
        "..",
        "",
        "a\0b",
    ];
    for name in names {
        for access in [Access::Read, Access::Write, Access::Create] {
            let code = pool.open_file(name, access).unwrap_err().code;
            assert_eq!(code, ErrorCode::Denied, "{name:?} {access:?}");
        }
    }
    assert_eq!(
        pool.open_file("absent", Access::Read).unwrap_err().code,
        ErrorCode::NotFound
    );
    assert_eq!(pool.file_names().unwrap(), ["hard"]);
    let strange = std::ffi::OsStr::from_bytes(b"disk-\xff");
    std::fs::write(pool.path().join(strange), b"s").unwrap();
    let others = pool.others().unwrap();
    let others: Vec<_> = others.iter().map(|(name, why)| (name.as_str(), why.code)).collect();
    let expected = [
        ("disk-\u{fffd}", ErrorCode::InvalidName),
        ("fifo", ErrorCode::Denied),
        ("folder", ErrorCode::Denied),
        ("link", ErrorCode::Denied),
    ];
    assert_eq!(others, expected);
}

/// Two threads swap files with links while they are opened. `VDISK_RACES` makes it more opens.
#[test]
fn links_swapped_in_during_opens_never_lead_out() {
    let (dir, pool) = pool();
    std::fs::write(dir.path().join("secret"), b"secret").unwrap();
    let pairs = [("a", "b"), ("c", "d")];
    for (file, link) in pairs {
        std::fs::write(pool.path().join(file), b"inside").unwrap();
        symlink("../secret", pool.path().join(link)).unwrap();
    }
    let opens = std::env::var("VDISK_RACES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(200_000_u32);
    let done = std::sync::atomic::AtomicBool::new(false);
    let (mut opened, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        for (file, link) in pairs {
            let (pool, done) = (&pool, &done);
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let folder = &pool.folder;
                    rustix::fs::renameat_with(folder, file, folder, link, RenameFlags::EXCHANGE).unwrap();
                }
            });
        }
        for number in 0..opens {
            let (name, access) = match number % 8 {
                0 => ("a", Access::Read),
                1 => ("b", Access::Read),
                2 => ("c", Access::Write),
                3 => ("d", Access::Write),
                4 => ("a", Access::Create),
                5 => ("b", Access::Create),
                6 => ("c", Access::Read),
                _ => ("d", Access::Read),
            };
            match pool.open_file(name, access) {
                Ok(file) => {
                    assert_eq!(std::io::read_to_string(file).unwrap(), "inside");
                    opened += 1;
                }
                Err(error) => {
                    assert_eq!(error.code, ErrorCode::Denied, "{error}");
                    refused += 1;
                }
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(opened > 0 && refused > 0, "{opened} opened, {refused} refused");
}

#[test]
fn renames_do_not_replace() {
    let (_dir, pool) = pool();
    std::fs::write(pool.path().join("a"), b"a").unwrap();
    std::fs::write(pool.path().join("b"), b"b").unwrap();
    assert_eq!(pool.rename("a", "b", false).unwrap_err().code, ErrorCode::NameTaken);
    pool.rename("a", "b", true).unwrap();
    assert_eq!(pool.rename("a", "c", false).unwrap_err().code, ErrorCode::NotFound);
    assert!(pool.remove("b").unwrap() && !pool.remove("b").unwrap());
}

#[test]
fn an_error_of_the_system_says_why() {
    let (_dir, pool) = pool();
    let long = "x".repeat(300);
    let tried = [
        ("open", pool.open_file(&long, Access::Write).map(drop)),
        ("rename", pool.rename(&long, "a", false)),
        ("remove", pool.remove(&long).map(drop)),
    ];
    for (verb, outcome) in tried {
        let error = outcome.unwrap_err();
        assert_eq!(error.code, ErrorCode::Io);
        assert_eq!(
            error.public,
            format!("cannot {verb} a file of pool 'p': File name too long")
        );
    }
    assert!(pool.stat(&long).unwrap().is_none(), "no file can have that name");
    let error = pool.refused("open", "a", Errno::ROFS);
    assert!(error.public.ends_with(": Read-only file system"), "{error}");
    assert!(error.internal.unwrap().ends_with("(os error 30)"));
}
