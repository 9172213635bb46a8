//! What signals do to a copy.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn start(folder: &Path, script: &str, args: &[&str]) -> Child {
    Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_vdisk")])
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn send(child: &Child, signal: &str) {
    e2e::tools::ok("kill", &[signal, &child.id().to_string()]);
}

/// Waits until there is a file.
fn wait_for(path: &Path) {
    let began = Instant::now();
    while !path.exists() {
        assert!(began.elapsed() < Duration::from_secs(20), "{path:?} does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The copy is under way shortly after.
    std::thread::sleep(Duration::from_millis(300));
}

/// What a caller ignores (nohup, a shell's background), the copy ignores, as qemu-img does.
#[test]
fn an_ignored_signal_stays_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("disk"), vec![7; 3 << 20]).unwrap();
    let args = ["convert", "-f", "raw", "-O", "raw", "-r", "1M", "disk", "out"];
    let child = start(path, "trap '' INT; exec \"$0\" \"$@\"", &args);
    wait_for(&path.join("out"));
    send(&child, "-INT");
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{out:?}");
    assert!(fs::read(path.join("out")).unwrap() == fs::read(path.join("disk")).unwrap());
}

/// Answers the first request for a byte of a disk of 8 MiB, and no other.
fn stalling_web() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/disk", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut kept: Vec<TcpStream> = Vec::new();
        for (n, mut stream) in listener.incoming().flatten().enumerate() {
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let _ = lines.take_while(|line| !line.is_empty()).count();
            if n == 0 {
                let head = "HTTP/1.1 206 x\r\nContent-Range: bytes 0-0/8388608\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
                stream.write_all(head.as_bytes()).unwrap();
            } else {
                kept.push(stream);
            }
        }
    });
    url
}

/// An oldstyle server of 8 MiB (doc/proto.md) that answers nothing.
fn stalling_nbd(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let mut stream: UnixStream = listener.accept().unwrap().0;
        let mut hello = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53".to_vec();
        hello.extend((8u64 << 20).to_be_bytes());
        hello.extend([0; 128]);
        stream.write_all(&hello).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
}

#[test]
fn a_copy_that_waits_for_a_server_ends_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    stalling_nbd(&path.join("sock"));
    for source in [stalling_web(), "nbd:unix:sock".to_owned()] {
        let child = start(
            path,
            "exec \"$0\" \"$@\"",
            &["convert", "-f", "raw", "-O", "raw", &source, "out"],
        );
        wait_for(&path.join("out"));
        let began = Instant::now();
        send(&child, "-TERM");
        let out = child.wait_with_output().unwrap();
        assert!(began.elapsed() < Duration::from_secs(10), "{source}");
        assert_eq!(out.status.code(), Some(1), "{out:?}");
        assert!(!path.join("out").exists(), "{source}");
    }
}

#[test]
fn a_copy_that_keeps_to_a_rate_ends_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("disk"), vec![7; 64 << 20]).unwrap();
    let args = ["convert", "-f", "raw", "-O", "raw", "-r", "1k", "disk", "out"];
    // Whoever runs the tests in the background of a shell ignores it.
    let child = start(path, "exec env --default-signal=INT \"$0\" \"$@\"", &args);
    wait_for(&path.join("out"));
    let began = Instant::now();
    send(&child, "-INT");
    let out = child.wait_with_output().unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert!(!path.join("out").exists());
}
