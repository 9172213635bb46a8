//! Exports of other people's NBD servers.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a broken precondition fails the test")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use e2e::tools::{arg, find, have, ok};
use vdisk_engine::storage::{NbdAddress, NbdOptions, NbdStorage};
use vdisk_engine::{CancelToken, ErrorKind, Result, Storage};

fn clock() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// A server that ends with the test.
struct Server {
    child: Child,
    socket: PathBuf,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a program in a folder of its own; `SOCKET` and `FOLDER` in its arguments are put in.
    fn start(program: &str, args: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let socket = folder.path().join("socket");
        let put = |a: &&str| a.replace("SOCKET", arg(&socket)).replace("FOLDER", arg(folder.path()));
        let child = Command::new(find(program).unwrap())
            .args(args.iter().map(put))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self { child, socket, folder };
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&server.socket).is_err() {
            assert!(server.child.try_wait().unwrap().is_none(), "{program} ended");
            assert!(began.elapsed() < Duration::from_secs(20), "{program} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn qemu(options: &[&str], disk: impl FnOnce(&Path)) -> Self {
        let base = ["-k", "SOCKET", "-t", "-e", "8"];
        Self::start("qemu-nbd", &[&base, options].concat(), disk)
    }

    fn nbdkit(args: &[&str]) -> Self {
        Self::start("nbdkit", &[&["-f", "-U", "SOCKET"], args].concat(), |_| ())
    }

    fn try_open(&self, export: &str, writable: bool) -> Result<NbdStorage> {
        NbdStorage::open(NbdOptions {
            address: NbdAddress::Unix(arg(&self.socket).to_owned()),
            export: export.to_owned(),
            name: "nbd".to_owned(),
            writable,
            timeout: Duration::from_secs(30),
            clock,
            tls: None,
            cancel: CancelToken::new(),
        })
    }

    fn open(&self) -> NbdStorage {
        self.try_open("", true).unwrap()
    }
}

/// A run at its offset: length, and whether it is data.
fn runs(storage: &dyn Storage) -> Vec<(u64, u64, bool)> {
    let (len, mut at, mut list) = (storage.len().unwrap(), 0, Vec::new());
    while at < len {
        let extent = storage.extent(at, len - at).unwrap();
        list.push((at, extent.len, extent.data));
        at += extent.len;
    }
    list
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ seed).collect()
}

#[test]
fn what_is_written_is_in_the_file_that_qemu_nbd_serves() {
    if !have(&["qemu-nbd"]) {
        return;
    }
    let server = Server::qemu(&["-f", "raw", "FOLDER/disk"], |f| {
        std::fs::File::create(f.join("disk"))
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
    });
    let storage = server.open();
    let data = pattern(9 << 20, 3);
    storage.write_at(12345, &data).unwrap();
    storage.write_zeroes(1 << 20, 70_001, true).unwrap();
    storage.discard(12 << 20, 1 << 20).unwrap();
    storage.flush().unwrap();
    let mut expected = vec![0; 16 << 20];
    expected[12345..12345 + data.len()].copy_from_slice(&data);
    expected[1 << 20..(1 << 20) + 70_001].fill(0);
    let mut back = vec![1; 16 << 20];
    storage.read_at(0, &mut back).unwrap();
    let wrong = back.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "the first byte that differs");
    assert!(
        std::fs::read(server.folder.path().join("disk")).unwrap() == expected,
        "the file"
    );
}

#[test]
fn holes_of_a_qcow2_image_are_seen_through_qemu_nbd() {
    if !have(&["qemu-nbd", "qemu-img", "qemu-io"]) {
        return;
    }
    let server = Server::qemu(&["-r", "-f", "qcow2", "-x", "an export", "FOLDER/disk"], |f| {
        let disk = f.join("disk");
        ok("qemu-img", &["create", "-q", "-f", "qcow2", arg(&disk), "5G"]);
        ok(
            "qemu-io",
            &["-c", "write -P 7 4G 192k", "-c", "write -z 1G 64k", arg(&disk)],
        );
    });
    let storage = server.try_open("an export", false).unwrap();
    let expected = vec![
        (0, 4 << 30, false),
        (4 << 30, 192 << 10, true),
        ((4 << 30) + (192 << 10), (1 << 30) - (192 << 10), false),
    ];
    let mut found: Vec<(u64, u64, bool)> = Vec::new();
    for (at, len, data) in runs(&storage) {
        match found.last_mut() {
            Some(last) if last.2 == data => last.1 += len,
            _ => found.push((at, len, data)),
        }
    }
    assert_eq!(found, expected);
    let wrong = server.try_open("other", false).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::InvalidArgument, "{wrong}");
    assert_eq!(
        server.try_open("an export", true).unwrap_err().kind(),
        ErrorKind::Denied
    );
}

#[test]
fn a_hole_that_is_written_is_data_from_then_on() {
    if !have(&["qemu-nbd"]) {
        return;
    }
    let server = Server::qemu(&["-f", "raw", "FOLDER/disk"], |f| {
        std::fs::File::create(f.join("disk")).unwrap().set_len(1 << 20).unwrap();
    });
    let storage = server.open();
    assert!(!storage.extent(65536, 65536).unwrap().data);
    storage.write_at(65536, &[1; 4096]).unwrap();
    assert!(storage.extent(65536, 65536).unwrap().data);
}

/// nbdkit's blocksize-policy filter fails every request that the sizes it tells forbid.
#[test]
fn the_block_sizes_of_the_server_are_kept() {
    if !have(&["nbdkit"]) {
        return;
    }
    let server = Server::nbdkit(&[
        "--filter=blocksize-policy",
        "memory",
        "3M",
        "blocksize-error-policy=error",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=64K",
    ]);
    let storage = server.open();
    let data = pattern(200_001, 9);
    storage.write_at(777, &data).unwrap();
    storage.write_zeroes(100_001, 50_000, true).unwrap();
    storage.discard(5, 100).unwrap();
    let mut expected = vec![0; 3 << 20];
    expected[777..777 + data.len()].copy_from_slice(&data);
    expected[100_001..150_001].fill(0);
    let mut back = vec![1; 3 << 20];
    storage.read_at(0, &mut back).unwrap();
    assert!(back == expected);
    let mut part = [0; 10];
    storage.read_at(70_003, &mut part).unwrap();
    assert_eq!(part, expected[70_003..70_013]);
}

#[test]
fn servers_of_every_dialect_are_understood() {
    if !have(&["nbdkit"]) {
        return;
    }
    for dialect in [
        &["-o"][..],
        &["-n"],
        &["--mask-handshake=0"],
        &["--mask-handshake=1"],
        &["--no-sr"],
    ] {
        let server = Server::nbdkit(&[dialect, &["pattern", "2M"]].concat());
        let storage = server.try_open("", false).unwrap();
        let mut buf = [0; 16];
        storage.read_at(1 << 20, &mut buf).unwrap();
        // Each 8 bytes are their own offset, big endian (nbdkit-pattern-plugin).
        let expected = [(1u64 << 20).to_be_bytes(), ((1u64 << 20) + 8).to_be_bytes()].concat();
        assert_eq!(
            (storage.len().unwrap(), buf.to_vec()),
            (2 << 20, expected),
            "{dialect:?}"
        );
    }
}

#[test]
fn a_server_without_zeroes_and_trim_gets_bytes() {
    if !have(&["nbdkit"]) {
        return;
    }
    let server = Server::nbdkit(&["--filter=nozero", "memory", "1M", "zeromode=none"]);
    let storage = server.open();
    storage.write_at(0, &[5; 65536]).unwrap();
    storage.write_zeroes(100, 65000, false).unwrap();
    let mut back = [1; 65536];
    storage.read_at(0, &mut back).unwrap();
    assert!(back[100..65100].iter().all(|b| *b == 0) && back[99] == 5 && back[65100] == 5);
}

#[test]
fn errors_of_the_server_keep_their_number() {
    if !have(&["nbdkit"]) {
        return;
    }
    let server = Server::nbdkit(&["full", "1M"]);
    let error = server.open().write_at(0, &[1; 512]).unwrap_err();
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::StorageFull), "{error}");
}

#[test]
fn tcp_servers_are_reached_by_name() {
    if !have(&["nbdkit"]) {
        return;
    }
    // nbdkit tells no port of its own choice: one that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut child = Command::new(find("nbdkit").unwrap())
        .args(["-f", "-i", "127.0.0.1", "-p", &port.to_string(), "null", "1M"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let opened = loop {
        let done = NbdStorage::open(NbdOptions {
            address: NbdAddress::Tcp {
                host: "localhost".to_owned(),
                port,
            },
            export: String::new(),
            name: "nbd".to_owned(),
            writable: false,
            timeout: Duration::from_secs(10),
            clock,
            tls: None,
            cancel: CancelToken::new(),
        });
        if done.is_ok() || began.elapsed() > Duration::from_secs(10) {
            break done;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let len = opened.and_then(|s| s.len());
    let _ = child.kill();
    let _ = child.wait();
    match len {
        Ok(len) => assert_eq!(len, 1 << 20),
        Err(error) => panic!("{error}"),
    }
}
