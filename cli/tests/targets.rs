//! What becomes of the file that an image is made in.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::{ok, vdisk};

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

// qemu-img leaves the file alone in each of these cases.
#[test]
fn an_image_that_is_refused_leaves_the_file_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    fs::write(folder.join("b"), vec![7; 1 << 20]).unwrap();
    let lines = [
        "create -f luks -o key-secret=s,cipher-alg=aes256 t 1M",
        "create -f luks -o key-secret=s,hash-alg=foo t 1M",
        "create -f luks -o key-secret=nobody t 1M",
        "create -f luks t 1M",
        "create -f qcow2 -o cluster_size=3k t 1M",
        "create -f qcow2 -o data_file_raw=on t 1M",
        "create -f qcow2 -o data_file=nodir/x t 1M",
        "create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=nobody t 1M",
        "create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=foo t 1M",
        "create -f qcow2 t 8E",
        "create -f qcow -o encrypt.format=aes,encrypt.key-secret=nobody t 1M",
        "create -f qed -o cluster_size=3k t 1M",
        "create -f parallels t 7E",
        "create -f vdi t 7E",
        "create -f vmdk -o subformat=monolithicFlat,zeroed_grain=on t 1M",
        "create -f vmdk -o compat6=on,hwversion=7 t 1M",
        "create -f vhdx -o block_size=3M t 1M",
        "create -f vhdx -b b -F raw t",
        "create -f vpc -b b -F raw t",
        "create -f vpc t 3T",
        "convert -f raw -O luks -o key-secret=s,hash-alg=foo b t",
        "convert -f raw -O qcow2 -o cluster_size=3k b t",
        "convert -f raw -O qcow2 -o encrypt.format=luks b t",
        "convert -f raw -O vpc -o subformat=foo b t",
        "dd -f raw -O luks if=b of=t",
    ];
    for line in lines {
        fs::write(folder.join("t"), b"mine").unwrap();
        let secret = ["--object", "secret,id=s,data=x"]
            .iter()
            .copied()
            .filter(|_| !line.starts_with("dd"));
        let mut words: Vec<&str> = line.split(' ').collect();
        words.splice(1..1, secret);
        let out = vdisk(folder, &words);
        assert_eq!(out.status.code(), Some(1), "{line}");
        assert_eq!(fs::read(folder.join("t")).unwrap(), b"mine", "{line}");
        assert_eq!(names(folder), ["b", "t"], "{line}");
    }
}

#[test]
fn an_image_with_larger_tables_than_can_be_opened_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    for options in [
        "-f parallels -o cluster_size=512 t 33G",
        "-f vdi -o block_size=4096 t 300G",
        "-f vhdx -o block_size=1M t 40T",
        "-f qed -o cluster_size=64M,table_size=16 t 1G",
    ] {
        let words: Vec<&str> = ["create"].into_iter().chain(options.split(' ')).collect();
        assert_eq!(vdisk(dir.path(), &words).status.code(), Some(1), "{options}");
        assert_eq!(names(dir.path()), [""; 0], "{options}");
    }
}

#[test]
fn a_new_image_keeps_nothing_of_the_file_that_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    fs::write(folder.join("b"), vec![7; 5000]).unwrap();
    for (format, size) in [
        ("raw", "0"),
        ("raw", "64k"),
        ("qcow2", "64k"),
        ("vdi", "64k"),
        ("vmdk", "64k"),
    ] {
        fs::write(folder.join("t"), vec![0xee; 10 << 20]).unwrap();
        ok(folder, &["create", "-q", "-f", format, "t", size]);
        // One such byte may be of a random identifier.
        let found = fs::read(folder.join("t")).unwrap();
        assert!(!found.windows(8).any(|w| w == [0xee; 8]), "{format} {size}");
    }
    fs::write(folder.join("t"), vec![0xee; 10 << 20]).unwrap();
    ok(folder, &["convert", "-f", "raw", "-O", "raw", "b", "t"]);
    let found = fs::read(folder.join("t")).unwrap();
    assert!(
        found[..5000] == [7; 5000] && found[5000..] == [0; 120],
        "{} bytes",
        found.len()
    );
}

#[test]
fn a_link_that_leads_nowhere_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    fs::write(folder.join("b"), vec![7; 1 << 20]).unwrap();
    fs::create_dir(folder.join("d")).unwrap();
    symlink("d/next", folder.join("t")).unwrap();
    symlink("../new", folder.join("d/next")).unwrap();
    for line in [
        "convert -f raw -O raw b t",
        "create -q -f qcow2 t 1M",
        "dd -f raw -O raw if=b of=t bs=64k",
    ] {
        ok(folder, &line.split(' ').collect::<Vec<_>>());
        assert!(fs::symlink_metadata(folder.join("t")).unwrap().is_symlink(), "{line}");
        fs::remove_file(folder.join("new")).unwrap();
    }
    // What was made goes again, not the link.
    let out = vdisk(
        folder,
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=3k", "t", "1M"],
    );
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(names(folder), ["b", "d", "t"]);
    // A link to itself leads to no file at all.
    symlink("loop", folder.join("loop")).unwrap();
    let out = vdisk(folder, &["create", "-q", "-f", "raw", "loop", "1M"]);
    assert_eq!(out.status.code(), Some(1));
}

/// Clusters of 1536 bytes begin at no whole page.
#[test]
fn clusters_of_any_number_of_sectors_are_filled() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut bytes: Vec<u8> = (0..3 << 20).map(|i: u32| (i / 512 % 251) as u8).collect();
    bytes[100_000..900_000].fill(0);
    bytes[1_000_448..1_001_472].fill(0);
    fs::write(folder.join("b"), &bytes).unwrap();
    for cluster in ["1536", "5120", "96k"] {
        let options = format!("cluster_size={cluster}");
        ok(
            folder,
            &["convert", "-f", "raw", "-O", "parallels", "-o", &options, "b", "t"],
        );
        ok(folder, &["compare", "-f", "raw", "-F", "parallels", "b", "t"]);
    }
}
