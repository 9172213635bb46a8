//! Folders as sources of `vdisk`.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use common::{ok, vdisk};
use e2e::tools::have;

#[test]
fn a_folder_becomes_an_image_under_each_of_its_names() {
    if !have(&["mdir", "mtype"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::create_dir(path.join("in")).unwrap();
    std::fs::write(path.join("in/A long name.txt"), "what is in it").unwrap();
    for (args, start) in [
        (&["-O", "raw", "fat:in", "out"][..], 63 * 512),
        (&["-f", "vvfat", "-O", "raw", "fat:12:in", "out"], 63 * 512),
        (&["-O", "raw", "fat:floppy:in", "out"], 0),
        (&["-O", "raw", "fat:32:in", "out"], 63 * 512),
        (
            &[
                "--image-opts",
                "-O",
                "raw",
                "driver=vvfat,dir=in,fat-type=16,label=HELLO",
                "out",
            ],
            63 * 512,
        ),
        (
            &[
                "-O",
                "raw",
                r#"json:{"driver":"raw","file":{"driver":"vvfat","dir":"in","floppy":true}}"#,
                "out",
            ],
            0,
        ),
    ] {
        ok(path, &[&["convert"], args].concat());
        let image = format!("{}@@{start}", path.join("out").display());
        let text = e2e::tools::ok("mtype", &["-i", &image, "::A long name.txt"]);
        assert_eq!(text, "what is in it", "{args:?}");
    }
}

#[test]
fn what_cannot_be_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for (name, why) in [
        ("fat:rw:.", "writing"),
        ("fat:13:.", "'13'"),
        ("fat:absent", "Could not read directory absent"),
        ("json:{'driver':'vvfat'}", "'dir'"),
        ("json:{'driver':'vvfat','dir':'.','fat-type':7}", "12, 16 and 32"),
    ] {
        let out = vdisk(path, &["info", name]);
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(1) && error.contains(why), "{name}: {error}");
    }
}
