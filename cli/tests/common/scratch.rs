//! A disk to work on, and commands that must fail on it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::common::vdisk;

/// Runs `vdisk`, which must fail, and gives its exit code and messages.
pub fn fails(folder: &Path, args: &[&str]) -> (i32, String) {
    let out = vdisk(folder, args);
    assert!(!out.status.success(), "vdisk {args:?} succeeded");
    (
        out.status.code().unwrap(),
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}

/// A raw disk of 4 MiB with some data.
pub fn disk(folder: &Path) {
    let file = File::create(folder.join("disk")).unwrap();
    file.set_len(4 << 20).unwrap();
    for (offset, byte) in [(0, 1), (100_000, 2), (1 << 20, 3), ((4 << 20) - 512, 4)] {
        file.write_all_at(&[byte; 512], offset).unwrap();
    }
}
