//! Servers that break the protocol, late ones, and ones that vanish. The messages are written out from doc/proto.md.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{NbdAddress, NbdOptions, NbdStorage};
use crate::{CancelToken, Error, ErrorKind, Result, Storage};

fn clock() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// A server that waits for `wait` bytes before each message.
struct Script {
    folder: tempfile::TempDir,
    server: JoinHandle<()>,
    cancel: CancelToken,
}

type Step = (usize, Vec<u8>);

impl Script {
    fn start(steps: Vec<Step>) -> Self {
        Self::serve(move |mut stream| {
            for (wait, message) in steps {
                let mut seen = vec![0; wait];
                if stream.read_exact(&mut seen).is_err() || stream.write_all(&message).is_err() {
                    return;
                }
            }
            // Stays until the client goes.
            let _ = stream.read_to_end(&mut Vec::new());
        })
    }

    fn serve(work: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let server = std::thread::spawn(move || work(listener.accept().unwrap().0));
        Self {
            folder,
            server,
            cancel: CancelToken::new(),
        }
    }

    fn open(&self, timeout: Duration) -> Result<NbdStorage> {
        NbdStorage::open(NbdOptions {
            address: NbdAddress::Unix(self.folder.path().join("s").to_str().unwrap().to_owned()),
            export: "x".to_owned(),
            name: "nbd".to_owned(),
            writable: true,
            timeout,
            clock,
            tls: None,
            cancel: self.cancel.clone(),
        })
    }

    /// Opens and does `work`, which must fail; gives the error.
    fn failure(self, work: impl FnOnce(&NbdStorage) -> Result<()>) -> Error {
        let began = Instant::now();
        let done = self.open(Duration::from_millis(300)).and_then(|s| work(&s));
        let error = done.expect_err("the server is not to be trusted");
        assert!(began.elapsed() < Duration::from_secs(2), "{error}");
        self.server.join().unwrap();
        error
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
        .collect()
}

/// Magic, and the flags FIXED_NEWSTYLE and NO_ZEROES.
fn greeting() -> Step {
    (0, [b"NBDMAGICIHAVEOPT".to_vec(), hex("0003")].concat())
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = hex("0003e889045565a9");
    bytes.extend([option.to_be_bytes(), kind.to_be_bytes()].concat());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Client flags and NBD_OPT_STRUCTURED_REPLY (4 + 16 bytes) are acknowledged; SET_META_CONTEXT for "x" and "base:allocation"
/// (16 + 4 + 1 + 4 + 4 + 15) gets context 7; GO (16 + 4 + 1 + 2 + 2) gets what is given.
fn until_go(go: Vec<u8>) -> Vec<Step> {
    vec![
        greeting(),
        (20, reply(8, 1, &[])),
        (
            44,
            [
                reply(10, 4, &[&[0, 0, 0, 7][..], b"base:allocation"].concat()),
                reply(10, 1, &[]),
            ]
            .concat(),
        ),
        (25, go),
    ]
}

/// An export of 1 MiB with all flags but READ_ONLY.
fn export() -> Vec<u8> {
    [reply(7, 3, &hex("0000 0000000000100000 006d")), reply(7, 1, &[])].concat()
}

fn blocks(min: u32, preferred: u32, max: u32) -> Vec<u8> {
    let sizes = [min.to_be_bytes(), preferred.to_be_bytes(), max.to_be_bytes()].concat();
    [reply(7, 3, &[&[0, 3][..], &sizes].concat()), export()].concat()
}

/// Answers a request (28 bytes) with the given bytes, after a good negotiation.
fn answering(bytes: &str) -> Script {
    let mut steps = until_go(export());
    steps.push((28, hex(bytes)));
    Script::start(steps)
}

#[test]
fn negotiations_that_break_the_protocol_are_refused() {
    let long_reply = hex("0003e889045565a9 00000008 00000001 7fffffff");
    let other_option = reply(9, 1, &[]);
    let endless: Vec<u8> = (0..200).flat_map(|_| reply(7, 3, &hex("0001 61"))).collect();
    let cases: Vec<(&str, Vec<Step>, ErrorKind)> = vec![
        (
            "no magic",
            vec![(0, b"HTTP/1.1 200 OK\r\n\r\n".to_vec())],
            ErrorKind::NotThisFormat,
        ),
        (
            "unknown dialect",
            vec![(0, b"NBDMAGICxxxxxxxx".to_vec())],
            ErrorKind::NotThisFormat,
        ),
        (
            "a reply of 2 GiB",
            vec![greeting(), (20, long_reply)],
            ErrorKind::Corrupt,
        ),
        (
            "a reply to another option",
            vec![greeting(), (20, other_option)],
            ErrorKind::Corrupt,
        ),
        ("no size", until_go(reply(7, 1, &[])), ErrorKind::Corrupt),
        (
            "short export",
            until_go(reply(7, 3, &hex("0000 00"))),
            ErrorKind::Corrupt,
        ),
        ("endless information", until_go(endless), ErrorKind::Corrupt),
        (
            "unknown export",
            until_go(reply(7, 0x8000_0006, b"no")),
            ErrorKind::InvalidArgument,
        ),
        (
            "TLS wanted",
            until_go(reply(7, 0x8000_0005, b"")),
            ErrorKind::Unsupported,
        ),
        ("minimum 0", until_go(blocks(0, 4096, 1 << 20)), ErrorKind::Corrupt),
        ("minimum 768", until_go(blocks(768, 4096, 1 << 20)), ErrorKind::Corrupt),
        (
            "minimum 128 KiB",
            until_go(blocks(1 << 17, 1 << 17, 1 << 20)),
            ErrorKind::Corrupt,
        ),
        (
            "maximum below minimum",
            until_go(blocks(4096, 4096, 512)),
            ErrorKind::Corrupt,
        ),
        (
            "size no multiple of the minimum",
            until_go(
                [
                    reply(7, 3, &hex("0000 0000000000000200 006d")),
                    reply(7, 3, &hex("0003 00001000 00001000 00100000")),
                    reply(7, 1, &[]),
                ]
                .concat(),
            ),
            ErrorKind::Corrupt,
        ),
        (
            "size past 2^63",
            until_go([reply(7, 3, &hex("0000 8000000000000000 006d")), reply(7, 1, &[])].concat()),
            ErrorKind::LimitExceeded,
        ),
    ];
    for (what, steps, kind) in cases {
        let error = Script::start(steps).failure(|_| Ok(()));
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
}

#[test]
fn replies_that_break_the_protocol_are_refused() {
    for (what, bytes) in [
        ("wrong magic", "deadbeef 0001 0001 0000000000000001"),
        ("another cookie", "668e33ef 0001 0000 0000000000000002 00000000"),
        ("simple reply with data", "67446698 0000 0000 0000000000000001"),
        ("no data at all", "668e33ef 0001 0000 0000000000000001 00000000"),
        (
            "data before the range",
            "668e33ef 0001 0001 0000000000000001 00000009 0000000000000fff 00",
        ),
        (
            "data past the range",
            "668e33ef 0001 0001 0000000000000001 00000009 0000000000001200 00",
        ),
        (
            "4 GiB of data",
            "668e33ef 0001 0001 0000000000000001 ffffffff 0000000000001000",
        ),
        (
            "a chunk without data",
            "668e33ef 0001 0001 0000000000000001 00000008 0000000000001000",
        ),
        (
            "too few data",
            "668e33ef 0001 0001 0000000000000001 00000009 0000000000001000 00",
        ),
        (
            "a hole of 4 GiB",
            "668e33ef 0001 0002 0000000000000001 0000000c 0000000000001000 ffffffff",
        ),
        (
            "an empty hole",
            "668e33ef 0001 0002 0000000000000001 0000000c 0000000000001000 00000000",
        ),
        (
            "the same bytes twice",
            "668e33ef 0000 0002 0000000000000001 0000000c 0000000000001000 00000200
             668e33ef 0001 0002 0000000000000001 0000000c 0000000000001000 00000200",
        ),
        (
            "a status for a read",
            "668e33ef 0001 0005 0000000000000001 0000000c 00000007 00000200 00000000",
        ),
        ("an unknown chunk", "668e33ef 0001 0009 0000000000000001 00000000"),
        ("an error of 2 GiB", "668e33ef 0001 8001 0000000000000001 7fffffff"),
        (
            "an error without number",
            "668e33ef 0001 8001 0000000000000001 00000006 00000000 0000",
        ),
    ] {
        let error = answering(bytes).failure(|s| s.read_at(4096, &mut [0; 512]));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[test]
fn statuses_that_break_the_protocol_are_refused() {
    for (what, bytes) in [
        (
            "another context",
            "668e33ef 0001 0005 0000000000000001 0000000c 00000008 00000200 00000000",
        ),
        (
            "an empty range",
            "668e33ef 0001 0005 0000000000000001 0000000c 00000007 00000000 00000000",
        ),
        (
            "half a range",
            "668e33ef 0001 0005 0000000000000001 00000008 00000007 00000200",
        ),
        ("no range", "668e33ef 0001 0005 0000000000000001 00000004 00000007"),
        ("nothing", "668e33ef 0001 0000 0000000000000001 00000000"),
    ] {
        let error = answering(bytes).failure(|s| s.extent(4096, 512).map(drop));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}

/// Blocks of 4 KiB. Of 4.5 KiB that read as zeroes, and 3.5 KiB of data behind them, a block of zeroes is believed; of half a KiB of zeroes
/// nothing is. (doc/proto.md, block size constraints)
#[test]
fn statuses_that_end_inside_a_block_are_believed_for_whole_blocks() {
    let mut steps = until_go(blocks(4096, 4096, 1 << 20));
    for status in [
        "668e33ef 0001 0005 0000000000000001 00000014 00000007 00001200 00000003 00000e00 00000000",
        "668e33ef 0001 0005 0000000000000002 00000014 00000007 00000200 00000003 00001000 00000003",
        "668e33ef 0001 0005 0000000000000003 00000014 00000007 00002000 00000000 00001000 00000003",
    ] {
        steps.push((28, hex(status)));
    }
    let script = Script::start(steps);
    let storage = script.open(Duration::from_secs(5)).unwrap();
    let extent = |offset| {
        let found = storage.extent(offset, 1 << 16).unwrap();
        (found.len, found.data)
    };
    assert_eq!(extent(0), (4096, false));
    assert_eq!(extent(4096), (4096, true));
    assert_eq!(extent(8192), (8192, true));
    assert_eq!(extent(16384), (4096, false));
}

#[test]
fn an_error_of_the_server_is_told_and_the_session_goes_on() {
    let mut steps = until_go(export());
    steps.push((
        28,
        hex("668e33ef 0001 8001 0000000000000001 00000008 00000005 0002 6e6f"),
    ));
    steps.push((
        28,
        hex("668e33ef 0001 0002 0000000000000002 0000000c 0000000000000000 00000004"),
    ));
    let script = Script::start(steps);
    let storage = script.open(Duration::from_secs(5)).unwrap();
    let error = storage.read_at(4096, &mut [0; 512]).unwrap_err();
    assert_eq!(
        (error.kind(), error.io_error().unwrap().raw_os_error()),
        (ErrorKind::Io, Some(5))
    );
    let mut buf = [1; 4];
    storage.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, [0; 4]);
}

#[test]
fn a_session_that_broke_is_not_used_again() {
    let script = answering("deadbeef 0001 0001 0000000000000001");
    let storage = script.open(Duration::from_secs(5)).unwrap();
    let first = storage.read_at(0, &mut [0; 4]).unwrap_err();
    assert_eq!(first.kind(), ErrorKind::Corrupt);
    let again = storage.read_at(0, &mut [0; 4]).unwrap_err();
    assert_eq!((again.kind(), again.what()), (ErrorKind::Corrupt, first.what()));
}

/// Error reply (4 bytes of magic, an error number, the cookie 1), once for EIO, which is one, once for ENOTSUP.
#[test]
fn a_status_that_fails_is_an_error_unless_the_server_cannot_tell_any() {
    let failed = answering("67446698 00000005 0000000000000001").failure(|s| s.extent(0, 4).map(|_| ()));
    assert_eq!(failed.io_error().and_then(std::io::Error::raw_os_error), Some(5));
    let script = answering("67446698 0000005f 0000000000000001");
    let storage = script.open(Duration::from_secs(5)).unwrap();
    assert!(storage.extent(0, 4).unwrap().data);
}

#[test]
fn a_flush_takes_the_time_that_the_server_needs() {
    let slow = Script::serve(|mut stream| {
        for (wait, message) in until_go(export()) {
            stream.read_exact(&mut vec![0; wait]).unwrap();
            stream.write_all(&message).unwrap();
        }
        stream.read_exact(&mut [0; 28]).unwrap();
        std::thread::sleep(Duration::from_millis(600));
        stream.write_all(&hex("67446698 00000000 0000000000000001")).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    slow.open(Duration::from_millis(300)).unwrap().flush().unwrap();
}

#[test]
fn who_waits_for_a_server_can_be_sent_away() {
    let script = Script::start(until_go(export()));
    let storage = script.open(Duration::from_secs(60)).unwrap();
    let (cancel, began) = (script.cancel.clone(), Instant::now());
    let user = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        cancel.cancel();
    });
    assert_eq!(storage.flush().unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(5));
    user.join().unwrap();
}

#[test]
fn a_server_that_vanishes_is_an_error() {
    let script = Script::serve(|mut s| s.write_all(b"NBDMAGICIHAVE").unwrap());
    let error = script.failure(|_| Ok(()));
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::UnexpectedEof), "{error}");
}

#[test]
fn silence_and_single_bytes_now_and_then_end_at_the_deadline() {
    let silent = Script::start(vec![(1, Vec::new())]);
    let dripping = Script::serve(|mut s| {
        for byte in b"NBDMAGICIHAVEOPT" {
            std::thread::sleep(Duration::from_millis(50));
            if s.write_all(&[*byte]).is_err() {
                return;
            }
        }
    });
    for script in [silent, dripping] {
        let error = script.failure(|_| Ok(()));
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::TimedOut), "{error}");
    }
}

/// Flags HAS_FLAGS and READ_ONLY.
#[test]
fn writing_to_a_read_only_export_is_refused() {
    let go = [reply(7, 3, &hex("0000 0000000000100000 0003")), reply(7, 1, &[])].concat();
    assert_eq!(
        Script::start(until_go(go)).failure(|_| Ok(())).kind(),
        ErrorKind::Denied
    );
}

#[test]
fn a_server_that_knows_only_export_names_is_understood() {
    // STRUCTURED_REPLY and GO are unknown to it; EXPORT_NAME "x" (16 + 1 bytes) gets size and flags.
    let steps = vec![
        greeting(),
        (20, reply(8, 0x8000_0001, &[])),
        (25, reply(7, 0x8000_0001, &[])),
        (17, hex("0000000000000004 0001")),
        (28, hex("67446698 00000000 0000000000000001 0a0b0c0d")),
    ];
    let script = Script::start(steps);
    let storage = script.open(Duration::from_secs(5)).unwrap();
    let mut buf = [0; 4];
    storage.read_at(0, &mut buf).unwrap();
    assert_eq!((storage.len().unwrap(), buf), (4, [10, 11, 12, 13]));
}
