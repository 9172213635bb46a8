//! NBD exports as sources and targets of `vdisk`.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{ok, vdisk};
use e2e::tools::{find, have};

/// `qemu-nbd` that serves until the test ends.
struct Server(Child);

impl Server {
    fn start(folder: &Path, args: &[&str]) -> Self {
        let _ = std::fs::remove_file(folder.join("sock"));
        let child = Command::new(find("qemu-nbd").unwrap())
            .args(["-t", "-e", "4", "-k"])
            .arg(folder.join("sock"))
            .args(args)
            .current_dir(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(folder.join("sock")).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "qemu-nbd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn disk(folder: &Path) {
    let bytes: Vec<u8> = (0..3 << 20).map(|i: u32| (i / 4096 % 7) as u8).collect();
    std::fs::write(folder.join("disk"), bytes).unwrap();
}

#[test]
fn an_export_is_converted_under_each_of_its_names() {
    if !have(&["qemu-nbd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    disk(path);
    let _server = Server::start(path, &["-r", "-f", "raw", "-x", "ex", "disk"]);
    for name in [
        "nbd+unix:///ex?socket=sock",
        "nbd:unix:sock:exportname=ex",
        r#"json:{"driver":"raw","file":{"driver":"nbd","server":{"type":"unix","path":"sock"},"export":"ex"}}"#,
        r#"json:{"driver":"nbd","path":"sock","export":"ex"}"#,
    ] {
        ok(path, &["convert", "-O", "qcow2", name, "out"]);
        ok(path, &["compare", "disk", "out"]);
    }
    let list = "driver=nbd,server.type=unix,server.path=sock,export=ex";
    ok(path, &["convert", "--image-opts", list, "-O", "raw", "out"]);
    assert!(std::fs::read(path.join("disk")).unwrap() == std::fs::read(path.join("out")).unwrap());
}

#[test]
fn an_export_is_filled_by_convert() {
    if !have(&["qemu-nbd", "qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    disk(path);
    ok(path, &["create", "-q", "-f", "qcow2", "to", "3M"]);
    let server = Server::start(path, &["-f", "qcow2", "to"]);
    let target = "nbd+unix://?socket=sock";
    ok(path, &["convert", "-n", "-f", "raw", "-O", "raw", "disk", target]);
    ok(path, &["compare", "-f", "raw", "-F", "raw", "disk", target]);
    // Without -n: an export is there already, and as large as it is.
    ok(path, &["convert", "-f", "raw", "-O", "raw", "disk", target]);
    drop(server);
    ok(path, &["compare", "disk", "to"]);
    let checked = e2e::tools::run("qemu-img", &["check", path.join("to").to_str().unwrap()]);
    assert!(checked.status.success());
}

#[test]
fn what_an_export_held_before_does_not_show_in_a_copy() {
    if !have(&["qemu-nbd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    disk(path);
    let target = "nbd+unix://?socket=sock";
    for (verb, operands) in [
        ("convert", &["-O", "raw", "-f", "raw", "disk", target][..]),
        (
            "dd",
            &["-O", "raw", "-f", "raw", "bs=64k", "if=disk", &format!("of={target}")],
        ),
    ] {
        std::fs::write(path.join("to"), vec![0xa5; 3 << 20]).unwrap();
        let server = Server::start(path, &["-f", "raw", "to"]);
        ok(path, &[&[verb], operands].concat());
        drop(server);
        assert!(
            std::fs::read(path.join("disk")).unwrap() == std::fs::read(path.join("to")).unwrap(),
            "{verb}"
        );
    }
}

#[test]
fn a_base_behind_nbd_is_read_through_the_overlay() {
    if !have(&["qemu-nbd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    disk(path);
    let _server = Server::start(path, &["-r", "-f", "raw", "disk"]);
    let base = "nbd+unix://?socket=sock";
    ok(path, &["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", "top"]);
    ok(path, &["compare", "disk", "top"]);
}

#[test]
fn facts_are_those_that_qemu_img_tells() {
    if !have(&["qemu-nbd", "qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    disk(path);
    let _server = Server::start(path, &["-r", "-f", "raw", "-x", "ex", "disk"]);
    let name = format!("nbd+unix:///ex?socket={}/sock", path.display());
    for verb in [&["info"][..], &["info", "--output=json"], &["map", "--output=json"]] {
        let ours = ok(path, &[verb, &["-f", "raw", &name]].concat());
        let peer = e2e::tools::ok("qemu-img", &[verb, &["-f", "raw", &name]].concat());
        assert_eq!(ours, peer, "{verb:?}");
    }
}

#[test]
fn what_is_not_there_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let out = vdisk(folder.path(), &["info", "nbd+unix://?socket=nobody"]);
    let error = String::from_utf8(out.stderr).unwrap();
    assert_eq!(
        (out.status.code(), error.as_str()),
        (
            Some(1),
            "vdisk: Could not open 'nbd+unix://?socket=nobody': Failed to connect to 'nobody': No such file or directory\n"
        )
    );
}

/// QEMU: "Cannot generate a base directory for NBD nodes". What looks like a folder in the name is that of another socket.
#[test]
fn a_name_in_an_image_behind_nbd_starts_from_no_folder() {
    if !have(&["qemu-nbd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    disk(path);
    ok(
        path,
        &[
            "create", "-q", "-u", "-f", "qcow2", "-b", "disk", "-F", "raw", "top", "3M",
        ],
    );
    let _server = Server::start(path, &["-r", "-f", "raw", "top"]);
    let name = format!("nbd+unix:///?socket={}", path.join("sock").display());
    let out = vdisk(path, &["convert", "-O", "raw", &name, "out"]);
    let message = "Cannot generate a base directory for NBD nodes";
    assert!(
        String::from_utf8_lossy(&out.stderr).ends_with(&format!("'{name}': {message}\n")),
        "{out:?}"
    );
    let facts = ok(path, &["info", &name]);
    assert!(
        facts.contains("backing file: disk (cannot determine actual path)\n"),
        "{facts}"
    );
    let out = vdisk(path, &["info", "--backing-chain", &name]);
    assert_eq!(out.status.code(), Some(1));
    let out = vdisk(path, &["create", "-q", "-f", "qcow2", "-b", "disk", "-F", "raw", &name]);
    assert!(String::from_utf8_lossy(&out.stderr).contains(message), "{out:?}");
}

#[test]
fn a_data_file_that_cannot_grow_bounds_the_disk() {
    if !have(&["qemu-nbd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    disk(path);
    let _server = Server::start(path, &["-f", "raw", "disk"]);
    let image = "driver=qcow2,file.driver=file,file.filename=top,data-file.driver=nbd,data-file.path=sock";
    for raw in ["on", "off"] {
        let options = format!("data_file=data,data_file_raw={raw}");
        ok(path, &["create", "-q", "-f", "qcow2", "-o", &options, "top", "3M"]);
        let before = std::fs::read(path.join("top")).unwrap();
        for line in [
            &["resize", "--image-opts", image, "4M"][..],
            &["resize", "--preallocation=metadata", "--image-opts", image, "4M"],
            &["amend", "--image-opts", "-o", "size=4M", image],
        ] {
            let out = vdisk(path, line);
            assert_eq!(out.status.code(), Some(1), "{line:?}");
            let message = "The data file cannot grow from 3145728 to 4194304 bytes";
            assert!(String::from_utf8_lossy(&out.stderr).contains(message), "{out:?}");
            assert!(std::fs::read(path.join("top")).unwrap() == before, "{line:?}");
        }
        ok(path, &["check", "--image-opts", image]);
    }
}

#[test]
fn no_export_is_filled_with_what_is_read_from_it() {
    if !have(&["qemu-nbd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    disk(path);
    let _server = Server::start(path, &["-f", "raw", "disk"]);
    std::os::unix::fs::symlink("sock", path.join("link")).unwrap();
    let before = std::fs::read(path.join("disk")).unwrap();
    for line in [
        "convert -f raw -O qcow2 nbd+unix:///?socket=sock nbd:unix:sock",
        "convert -f raw -O qcow2 nbd+unix:///?socket=sock nbd:unix:link",
        "create -q -f qcow2 -F raw -b nbd:unix:sock nbd+unix:///?socket=sock",
        "dd -f raw -O raw if=nbd:unix:sock of=nbd+unix:///?socket=sock",
    ] {
        let out = vdisk(path, &line.split(' ').collect::<Vec<_>>());
        assert_eq!(out.status.code(), Some(1), "{line}");
    }
    assert!(std::fs::read(path.join("disk")).unwrap() == before);
}
