//! Secrets in every form the command line has for them.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;
#[path = "common/scratch.rs"]
mod scratch;

use std::fs;
use std::process::Command;

use common::ok;
use scratch::{disk, fails};

#[test]
fn secrets_are_read_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    fs::write(dir.path().join("key"), "0123456789abcdef0123456789abcdef").unwrap();
    let good: &[&str] = &[
        "secret,id=a,data=x",
        "secret,id=a,file=key",
        "secret,id=a,data=eHl6,format=base64",
        r#"{"qom-type":"secret","id":"a","data":"x"}"#,
    ];
    for object in good {
        ok(dir.path(), &["info", "--object", object, "disk"]);
    }
    for (object, message) in [
        ("secret,id=a,data=x,file=key", "mutually exclusive"),
        ("secret,id=a,data=*,format=base64", "base64"),
        (
            "secret,id=a,data=eHl6,format=base64,keyid=m,iv=AAAA",
            "No secret with id 'm'",
        ),
        ("secret,id=a,file=nofile", "nofile"),
        ("iothread,id=a", "iothread"),
    ] {
        let (code, said) = fails(dir.path(), &["info", "--object", object, "disk"]);
        assert!(code == 1 && said.contains(message), "{object}: {said}");
    }
}

#[test]
fn files_of_keys_that_are_too_long_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    fs::write(dir.path().join("long"), [b'x'; 64 << 10]).unwrap();
    fs::write(dir.path().join("longer"), [b'x'; (64 << 10) + 1]).unwrap();
    let info = |object: &'static str| ["info", "--object", object, "disk"];
    ok(dir.path(), &info("secret,id=a,file=long"));
    for name in ["secret,id=a,file=longer", "secret,id=a,file=/dev/zero"] {
        let (code, said) = fails(dir.path(), &info(name));
        assert!(code == 1 && said.contains("at most 65536 bytes"), "{name}: {said}");
    }
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("ca-cert.pem")).unwrap();
    let (code, said) = fails(dir.path(), &info("tls-creds-x509,id=t,dir=."));
    assert!(code == 1 && said.contains("at most 16777216 bytes"), "{said}");
}

#[test]
fn an_encrypted_secret_opens_what_the_plain_one_locked() {
    if !e2e::tools::have(&["openssl", "qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (key, iv) = ("00112233445566778899aabbccddeeff".repeat(2), "0f".repeat(16));
    fs::write(dir.path().join("plain"), "open sesame").unwrap();
    let line = format!(
        "openssl enc -aes-256-cbc -a -K {key} -iv {iv} -in {} -out {}",
        at("plain"),
        at("sealed")
    );
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    let bytes: Vec<u8> = (0..32)
        .map(|i| u8::from_str_radix(&key[i * 2..i * 2 + 2], 16).unwrap())
        .collect();
    fs::write(dir.path().join("master"), bytes).unwrap();
    let plain = format!("secret,id=s,file={}", at("plain"));
    let image = at("luks");
    let create = [
        "create",
        "-q",
        "--object",
        &plain,
        "-f",
        "luks",
        "-o",
        "key-secret=s,iter-time=10",
        &image,
        "1M",
    ];
    e2e::tools::ok("qemu-img", &create);
    let master = format!("secret,id=m,file={}", at("master"));
    // The 16 bytes 0f in base64.
    let sealed = format!(
        "secret,id=s,file={},format=base64,keyid=m,iv=Dw8PDw8PDw8PDw8PDw8PDw==",
        at("sealed")
    );
    let name = format!("driver=luks,key-secret=s,file.filename={image}");
    ok(
        dir.path(),
        &[
            "convert",
            "--object",
            &master,
            "--object",
            &sealed,
            "--image-opts",
            &name,
            "out",
        ],
    );
    let wrong = [
        "convert",
        "--object",
        "secret,id=s,data=wrong",
        "--image-opts",
        &name,
        "out2",
    ];
    assert_eq!(fails(dir.path(), &wrong).0, 1);
    assert!(!dir.path().join("out2").exists());
}
