//! NBD over TLS: certificates by openssl, the server by qemu-nbd.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{ok, vdisk};
use e2e::tools::{arg, find, have};

const TOOLS: [&str; 2] = ["qemu-nbd", "openssl"];
const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

fn openssl(folder: &Path, args: &[&str]) {
    let out = Command::new(find("openssl").unwrap())
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "openssl {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// An authority in `folder`, by the name that QEMU has for its certificate.
fn authority(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"];
    let made = [
        "req",
        "-x509",
        "-keyout",
        "ca-key.pem",
        "-out",
        "ca-cert.pem",
        "-subj",
        "/CN=authority",
        "-days",
        "999",
    ];
    openssl(folder, &[&made[..], &KEY, &usage].concat());
}

/// A certificate for `name` in a folder of its own, with that of the authority beside it.
fn signed(authority: &Path, folder: &Path, role: &str, name: &str) {
    fs::create_dir(folder).unwrap();
    let ca = |file: &str| authority.join(file).display().to_string();
    fs::copy(ca("ca-cert.pem"), folder.join("ca-cert.pem")).unwrap();
    let text = format!(
        "subjectAltName=DNS:{name}\nextendedKeyUsage={role}Auth\nkeyUsage=critical,digitalSignature,keyEncipherment\n\
         basicConstraints=critical,CA:FALSE\n"
    );
    fs::write(folder.join("ext"), text).unwrap();
    let (key, certificate) = (format!("{role}-key.pem"), format!("{role}-cert.pem"));
    let subject = format!("/CN={name}");
    openssl(
        folder,
        &[&["req", "-keyout", &key, "-out", "csr", "-subj", &subject][..], &KEY].concat(),
    );
    openssl(
        folder,
        &[
            "x509",
            "-req",
            "-in",
            "csr",
            "-CA",
            &ca("ca-cert.pem"),
            "-CAkey",
            &ca("ca-key.pem"),
            "-CAcreateserial",
            "-days",
            "999",
            "-extfile",
            "ext",
            "-out",
            &certificate,
        ],
    );
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `qemu-nbd` with the file `disk` behind `sock`.
fn serve(folder: &Path, more: &[&str]) -> Server {
    let child = Command::new(find("qemu-nbd").unwrap())
        .args(["-t", "-e", "4", "-f", "raw", "-x", "ex", "-k"])
        .arg(folder.join("sock"))
        .args(more)
        .arg("disk")
        .current_dir(folder)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while std::os::unix::net::UnixStream::connect(folder.join("sock")).is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "qemu-nbd does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Server(child)
}

fn serve_tls(folder: &Path) -> Server {
    let credentials = format!(
        "tls-creds-x509,id=t,dir={},endpoint=server,verify-peer=on",
        arg(&folder.join("s"))
    );
    serve(folder, &["--object", &credentials, "--tls-creds", "t"])
}

/// Folders `s` (server), `c` (client), `other` (signed by somebody else) and a disk.
fn prepare() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    authority(&path.join("ca"));
    signed(&path.join("ca"), &path.join("s"), "server", "localhost");
    signed(&path.join("ca"), &path.join("c"), "client", "me");
    authority(&path.join("ca2"));
    signed(&path.join("ca2"), &path.join("other"), "client", "me");
    let bytes: Vec<u8> = (0..5 << 20).map(|i: u32| (i / 1000 % 251) as u8).collect();
    fs::write(path.join("disk"), bytes).unwrap();
    folder
}

fn object(rest: &str) -> String {
    format!("tls-creds-x509,id=t,endpoint=client,{rest}")
}

const EXPORT: &str = "driver=nbd,server.type=unix,server.path=sock,export=ex,tls-creds=t,tls-hostname=localhost";

#[test]
fn an_export_is_read_and_written_over_tls() {
    if !have(&TOOLS) {
        return;
    }
    let folder = prepare();
    let path = folder.path();
    let server = serve_tls(path);
    let client = object("dir=c");
    ok(
        path,
        &[
            "convert",
            "--object",
            &client,
            "--image-opts",
            EXPORT,
            "-O",
            "raw",
            "out",
        ],
    );
    assert!(fs::read(path.join("out")).unwrap() == fs::read(path.join("disk")).unwrap());
    fs::write(path.join("new"), vec![7; 5 << 20]).unwrap();
    ok(
        path,
        &[
            "convert",
            "--object",
            &client,
            "-n",
            "-f",
            "raw",
            "--target-image-opts",
            "new",
            EXPORT,
        ],
    );
    drop(server);
    assert!(fs::read(path.join("new")).unwrap() == fs::read(path.join("disk")).unwrap());
}

#[test]
fn a_peer_that_is_not_the_right_one_is_refused() {
    if !have(&TOOLS) {
        return;
    }
    let folder = prepare();
    let path = folder.path();
    let _server = serve_tls(path);
    fs::create_dir(path.join("bare")).unwrap();
    fs::copy(path.join("c/ca-cert.pem"), path.join("bare/ca-cert.pem")).unwrap();
    let elsewhere = EXPORT.replace("localhost", "elsewhere");
    let nameless = EXPORT.replace(",tls-hostname=localhost", "");
    let plain = EXPORT.replace(",tls-creds=t,tls-hostname=localhost", "");
    for (credentials, export, word) in [
        ("dir=other", EXPORT, "invalid peer certificate"),
        ("dir=c", &elsewhere, "not valid for name"),
        ("dir=c", &nameless, "tls-hostname"),
        ("dir=c", &plain, "wants TLS"),
        // The server takes no client without a certificate; when it says so depends on the version of TLS.
        ("dir=bare", EXPORT, "NBD server"),
        ("dir=c,verify-peer=maybe", EXPORT, "verify-peer"),
        ("dir=c,priority=NORMAL", EXPORT, "priority"),
        ("dir=gone", EXPORT, "ca-cert.pem"),
    ] {
        let out = vdisk(
            path,
            &["info", "--object", &object(credentials), "--image-opts", export],
        );
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(
            out.status.code() == Some(1) && error.contains(word),
            "{credentials} {export}: {error}"
        );
    }
    let unverified = object("dir=c,verify-peer=off");
    ok(path, &["info", "--object", &unverified, "--image-opts", &elsewhere]);
}

#[test]
fn nothing_goes_on_without_tls_where_it_was_asked_for() {
    if !have(&TOOLS) {
        return;
    }
    let folder = prepare();
    let path = folder.path();
    let _server = serve(path, &[]);
    let out = vdisk(path, &["info", "--object", &object("dir=c"), "--image-opts", EXPORT]);
    let error = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.code() == Some(1) && error.contains("has no TLS"), "{error}");
    let psk = ["info", "--object", "tls-creds-psk,id=t,dir=c", "--image-opts", EXPORT];
    assert_eq!(vdisk(path, &psk).status.code(), Some(1));
}
