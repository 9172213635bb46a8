//! Encryption from the command line: the recipes that qemu-img users know, with QEMU's tools reading the results, and secrets that stay secret.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{ok, vdisk};
use e2e::tools::have;

const SECRET: &str = "correct horse battery staple";
const SIZE: usize = 3 << 20;

/// A folder with a raw disk.
fn folder() -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..SIZE)
        .map(|i| if i / 200_000 % 2 == 0 { (i / 512 % 251) as u8 } else { 0 })
        .collect();
    fs::write(dir.path().join("disk.raw"), &data).unwrap();
    (dir, data)
}

fn object() -> String {
    format!("secret,id=sec0,data={SECRET}")
}

/// Runs a program of others in the folder; it must succeed.
fn peer(folder: &Path, program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).current_dir(folder).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {text}");
    String::from_utf8(out.stdout).unwrap()
}

fn line<'a>(text: &'a str, object: &'a str) -> Vec<&'a str> {
    text.split(' ')
        .map(|word| if word == "SECRET" { object } else { word })
        .collect()
}

#[test]
fn the_recipes_make_what_qemu_reads() {
    if !have(&["qemu-img"]) {
        return;
    }
    let (dir, _) = folder();
    let object = object();
    let lines = [
        "create --object SECRET -f luks -o key-secret=sec0,iter-time=10 a.luks 3M",
        "convert --object SECRET -f raw --target-image-opts -n disk.raw driver=luks,file.filename=a.luks,key-secret=sec0",
        "create --object SECRET -f qcow2 -o encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10 b.qcow2 3M",
        "convert --object SECRET -f raw --target-image-opts -n disk.raw driver=qcow2,file.filename=b.qcow2,encrypt.key-secret=sec0",
        "convert --object SECRET -f raw -O luks -o key-secret=sec0,iter-time=10 disk.raw c.luks",
        "convert --object SECRET -f raw -O qcow2 -o encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10 disk.raw d.qcow2",
        "convert --object SECRET -f raw -O qcow2 -o encrypt.format=aes,encrypt.key-secret=sec0 disk.raw e.qcow2",
        "convert --object SECRET -f raw -O qcow -o encrypt.format=aes,encrypt.key-secret=sec0 disk.raw f.qcow",
    ];
    for text in lines {
        ok(dir.path(), &line(text, &object));
    }
    for (file, driver, option) in [
        ("a.luks", "luks", "key-secret"),
        ("b.qcow2", "qcow2", "encrypt.key-secret"),
        ("c.luks", "luks", "key-secret"),
        ("d.qcow2", "qcow2", "encrypt.key-secret"),
        ("e.qcow2", "qcow2", "encrypt.key-secret"),
        ("f.qcow", "qcow", "encrypt.key-secret"),
    ] {
        let image = format!("driver={driver},file.filename={file},{option}=sec0");
        let compare = format!("compare --object SECRET --image-opts {image} driver=raw,file.filename=disk.raw");
        let said = peer(dir.path(), "qemu-img", &line(&compare, &object));
        assert!(said.contains("identical"), "{file}: {said}");
        ok(dir.path(), &line(&compare, &object));
    }
    for file in ["b.qcow2", "d.qcow2", "e.qcow2"] {
        let check =
            format!("check --object SECRET --image-opts driver=qcow2,file.filename={file},encrypt.key-secret=sec0");
        peer(dir.path(), "qemu-img", &line(&check, &object));
        ok(dir.path(), &["check", file]);
        ok(dir.path(), &["map", "--output=json", file]);
        ok(dir.path(), &["info", file]);
    }
}

#[test]
fn a_secret_under_a_master_secret_opens_what_qemu_made() {
    if !have(&["qemu-img", "openssl", "sh"]) {
        return;
    }
    let (dir, data) = folder();
    // QEMU's recipe: a master key of 32 bytes, and the passphrase encrypted under it.
    let recipe = format!(
        "openssl rand -base64 32 > key.b64\n\
         KEY=$(base64 -d key.b64 | od -An -v -tx1 | tr -d ' \\n')\n\
         openssl rand -base64 16 > iv.b64\n\
         IV=$(base64 -d iv.b64 | od -An -v -tx1 | tr -d ' \\n')\n\
         printf '%s' '{SECRET}' | openssl enc -aes-256-cbc -a -K $KEY -iv $IV > sealed.b64\n"
    );
    peer(dir.path(), "sh", &["-ec", &recipe]);
    let iv = fs::read_to_string(dir.path().join("iv.b64")).unwrap();
    let master = "secret,id=master,format=base64,file=key.b64";
    let sealed = format!(
        "secret,id=sec0,keyid=master,format=base64,file=sealed.b64,iv={}",
        iv.trim()
    );
    let make =
        "convert --object SECRET -f raw -O qcow2 -o encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10";
    let plain = object();
    let mut args = line(make, &plain);
    args.extend(["disk.raw", "q.qcow2"]);
    peer(dir.path(), "qemu-img", &args);
    let from = "driver=qcow2,file.filename=q.qcow2,encrypt.key-secret=sec0";
    let objects = ["--object", master, "--object", &sealed];
    ok(
        dir.path(),
        &[
            &["convert"],
            &objects[..],
            &["--image-opts", from, "-O", "raw", "out.raw"],
        ]
        .concat(),
    );
    assert!(fs::read(dir.path().join("out.raw")).unwrap() == data);
}

#[test]
fn keys_are_added_changed_and_erased_as_qemu_img_does() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let (dir, _) = folder();
    let objects = [
        "--object",
        "secret,id=one,data=first",
        "--object",
        "secret,id=two,data=second",
    ];
    for (file, format, prefix) in [("k.luks", "luks", ""), ("k.qcow2", "qcow2", "encrypt.")] {
        let (extra, p) = (if prefix.is_empty() { "" } else { "encrypt.format=luks," }, prefix);
        let options = format!("{extra}{p}key-secret=one,{p}iter-time=10");
        ok(
            dir.path(),
            &[
                &["create", "-q"],
                &objects[..],
                &["-f", format, "-o", &options, file, "1M"],
            ]
            .concat(),
        );
        let image = |id: &str| format!("driver={format},file.filename={file},{p}key-secret={id}");
        let amend = |program: &str, id: &str, change: &str| {
            let change: Vec<_> = change.split(',').map(|o| format!("{p}{o}")).collect();
            let (image, change) = (image(id), change.join(","));
            let args = [&["amend"], &objects[..], &["--image-opts", &image, "-o", &change]].concat();
            match program {
                "vdisk" => vdisk(dir.path(), &args).status.success(),
                other => Command::new(other)
                    .args(&args)
                    .current_dir(dir.path())
                    .output()
                    .unwrap()
                    .status
                    .success(),
            }
        };
        let opens = |id: &str| {
            let image = image(id);
            let args = [&objects[..], &["--image-opts", "-c", "read 0 512", &image]].concat();
            Command::new("qemu-io")
                .args(&args)
                .current_dir(dir.path())
                .output()
                .unwrap()
                .status
                .success()
        };
        assert!(opens("one") && !opens("two"), "{file}");
        assert!(amend("vdisk", "one", "state=active,new-secret=two,iter-time=10"));
        assert!(opens("one") && opens("two"), "{file}");
        assert!(
            !amend("vdisk", "one", "state=active,new-secret=two,keyslot=1,iter-time=10"),
            "a slot in use"
        );
        assert!(amend("vdisk", "two", "state=inactive,old-secret=one"));
        assert!(!opens("one") && opens("two"), "{file}");
        for program in ["vdisk", "qemu-img"] {
            assert!(
                !amend(program, "two", "state=inactive,keyslot=1"),
                "{program}: the last key"
            );
            assert!(
                !amend(program, "two", "state=inactive,old-secret=two"),
                "{program}: the last key"
            );
            assert!(!amend(program, "two", "keyslot=1"), "{program}: no state");
        }
        assert!(opens("two"), "{file}");
    }
}

#[test]
fn compression_into_an_encrypted_image_is_refused() {
    let (dir, _) = folder();
    let object = object();
    let options = "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10";
    let out = vdisk(
        dir.path(),
        &[
            "convert", "-c", "--object", &object, "-O", "qcow2", "-o", options, "disk.raw", "z.qcow2",
        ],
    );
    assert!(!out.status.success());
    assert!(!dir.path().join("z.qcow2").exists());
}

/// Everything that a run says.
fn said(folder: &Path, args: &[&str]) -> String {
    let out = vdisk(folder, args);
    String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
}

#[test]
fn no_secret_is_ever_said() {
    let (dir, _) = folder();
    // Parts that would show in any form: as they are, with a comma, as JSON that does not parse, as broken base64.
    let word = "hunter2secret";
    let object = format!("secret,id=sec0,data={word}");
    let wrong = format!("secret,id=sec1,data={word}wrong");
    let luks = "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10";
    let right = "driver=qcow2,file.filename=q.qcow2,encrypt.key-secret=sec0";
    let other = "driver=qcow2,file.filename=q.qcow2,encrypt.key-secret=sec1";
    fs::write(dir.path().join("secret.txt"), word).unwrap();
    let commands: Vec<Vec<&str>> = vec![
        vec![
            "create", "--object", &object, "-f", "qcow2", "-o", luks, "q.qcow2", "1M",
        ],
        vec![
            "create",
            "--object",
            &object,
            "-f",
            "luks",
            "-o",
            "key-secret=sec0,iter-time=10",
            "l.luks",
            "1M",
        ],
        vec!["info", "--object", &object, "--image-opts", right],
        vec!["info", "--object", &object, "--output=json", "--image-opts", right],
        vec!["check", "--object", &object, "--image-opts", right],
        vec!["map", "--object", &object, "--output=json", "--image-opts", right],
        vec![
            "compare",
            "--object",
            &object,
            "--image-opts",
            right,
            "driver=raw,file.filename=disk.raw",
        ],
        vec![
            "convert",
            "--object",
            &wrong,
            "--image-opts",
            other,
            "-O",
            "raw",
            "x.raw",
        ],
        vec![
            "convert",
            "--object",
            &object,
            "--image-opts",
            other,
            "-O",
            "raw",
            "x.raw",
        ],
        vec![
            "amend",
            "--object",
            &object,
            "--image-opts",
            right,
            "-o",
            "encrypt.state=active,encrypt.new-secret=sec0,encrypt.iter-time=10",
        ],
        vec![
            "amend",
            "--object",
            &object,
            "--image-opts",
            right,
            "-o",
            "encrypt.state=inactive,encrypt.old-secret=sec9",
        ],
    ];
    for args in &commands {
        let text = said(dir.path(), args);
        assert!(!text.contains(word), "{args:?} says: {text}");
    }
    let broken = [
        format!("secret,id=a,data=x,{word}"),
        format!("secret,id=a,data=x,{word}=on"),
        format!("secret,id=a,data={word},format=base64"),
        format!("secret,id=a,data={word},format=hex"),
        format!("secret,id=a,data={word},keyid=none,iv=AAAA"),
        format!("secret,id=a,data={word},keyid=a"),
        format!("secret,id=a,data={word},file=secret.txt"),
        "secret,id=a,file=secret.txt,format=base64".to_owned(),
        format!("secret,data={word}"),
        format!("{{\"qom-type\": \"secret\", \"id\": \"a\", \"data\": \"{word}\""),
        format!("{{\"qom-type\": \"secret\", \"id\": \"a\", \"data\": \"{word}\", \"more\": 1}}"),
    ];
    for object in &broken {
        let out = vdisk(dir.path(), &["info", "--object", object, "disk.raw"]);
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert!(!out.status.success(), "{object} was taken");
        assert!(!text.contains(word), "{object} says: {text}");
    }
}

#[test]
fn each_layer_of_an_encrypted_chain_takes_its_own_secret() {
    if !have(&["qemu-img"]) {
        return;
    }
    let (dir, data) = folder();
    let objects = [
        "--object",
        "secret,id=one,data=first",
        "--object",
        "secret,id=two,data=second",
    ];
    let base = "encrypt.format=luks,encrypt.key-secret=one,encrypt.iter-time=10";
    let top = "encrypt.format=luks,encrypt.key-secret=two,encrypt.iter-time=10";
    ok(
        dir.path(),
        &[
            &["convert"],
            &objects[..],
            &["-O", "qcow2", "-o", base, "disk.raw", "base.qcow2"],
        ]
        .concat(),
    );
    let create = ["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "-o", top, "top.qcow2"];
    ok(dir.path(), &[&["create", "-q"], &objects[..], &create].concat());
    let chain = "driver=qcow2,file.filename=top.qcow2,encrypt.key-secret=two,backing.encrypt.key-secret=one";
    ok(
        dir.path(),
        &[
            &["convert"],
            &objects[..],
            &["--image-opts", chain, "-O", "raw", "ours.raw"],
        ]
        .concat(),
    );
    peer(
        dir.path(),
        "qemu-img",
        &[
            &["convert"],
            &objects[..],
            &["--image-opts", chain, "-O", "raw", "theirs.raw"],
        ]
        .concat(),
    );
    assert!(fs::read(dir.path().join("ours.raw")).unwrap() == data);
    assert!(fs::read(dir.path().join("theirs.raw")).unwrap() == data);
    let without = "driver=qcow2,file.filename=top.qcow2,encrypt.key-secret=two";
    let out = vdisk(
        dir.path(),
        &[
            &["convert"],
            &objects[..],
            &["--image-opts", without, "-O", "raw", "x.raw"],
        ]
        .concat(),
    );
    assert!(String::from_utf8_lossy(&out.stderr).contains("encrypt.key-secret"));
}

#[test]
fn no_core_dump_is_left_that_could_hold_a_key() {
    let (dir, _) = folder();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vdisk"))
        .args([
            "create",
            "-f",
            "luks",
            "--object",
            &object(),
            "-o",
            "key-secret=sec0,iter-time=3000",
            "x.luks",
            "1M",
        ])
        .current_dir(dir.path())
        .spawn()
        .unwrap();
    // The limit is set before the options are read, and deriving the key takes long enough to see it.
    let path = format!("/proc/{}/limits", child.id());
    let core = (0..200).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let limits = fs::read_to_string(&path).ok()?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size"))?;
        (core.split_whitespace().nth(4) == Some("0")).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(core.is_some(), "the limit was not set");
}

/// As libvirt names it, in options and in `json:`.
#[test]
fn a_detached_header_is_named_as_qemu_names_it() {
    if !have(&["qemu-img"]) {
        return;
    }
    let (dir, data) = folder();
    let object = object();
    let make = "create -q --object SECRET -f luks -o key-secret=sec0,iter-time=10,detached-header=on header.luks 0";
    ok(dir.path(), &line(make, &object));
    fs::write(dir.path().join("data.img"), vec![0; data.len()]).unwrap();
    let options = "driver=luks,key-secret=sec0,header.driver=file,header.filename=header.luks,file.filename=data.img";
    let tree = r#"json:{"driver":"luks","key-secret":"sec0","header":{"driver":"file","filename":"header.luks"},"file":{"driver":"file","filename":"data.img"}}"#;
    let fill = format!("convert --object SECRET -f raw -n --target-image-opts disk.raw {options}");
    ok(dir.path(), &line(&fill, &object));
    ok(
        dir.path(),
        &["convert", "--object", &object, tree, "-O", "raw", "out.raw"],
    );
    assert!(fs::read(dir.path().join("out.raw")).unwrap() == data);
    let info = ["info", "--object", &object, "--output=json", tree];
    let ours: serde_json::Value = serde_json::from_str(&ok(dir.path(), &info)).unwrap();
    let theirs: serde_json::Value = serde_json::from_str(&peer(dir.path(), "qemu-img", &info)).unwrap();
    assert_eq!(ours["filename"], theirs["filename"]);
    let names = |info: &serde_json::Value| -> Vec<_> {
        let children = info["children"].as_array().unwrap().iter();
        children
            .map(|child| (child["name"].clone(), child["info"]["filename"].clone()))
            .collect()
    };
    assert_eq!(names(&ours), names(&theirs));
}

#[test]
fn an_object_is_named_by_an_identifier() {
    let (dir, _) = folder();
    for (id, fits) in [
        ("a_b.c-9", true),
        ("9a", false),
        ("_a", false),
        ("a b", false),
        ("\u{e4}", false),
    ] {
        let object = format!("secret,id={id},data=x");
        let args = ["info", "--object", &object, "disk.raw"];
        assert_eq!(vdisk(dir.path(), &args).status.success(), fits, "{id}");
        if have(&["qemu-img"]) {
            let theirs = Command::new("qemu-img")
                .args(args)
                .current_dir(dir.path())
                .output()
                .unwrap();
            assert_eq!(theirs.status.success(), fits, "{id}");
        }
    }
}
