//! An NBD server whose bytes are an input: a byte of flags (1: opened for writing, 2: an export with a name), then all that it ever says.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vdisk_engine::storage::{NbdAddress, NbdOptions, NbdStorage};
use vdisk_engine::{CancelToken, ErrorKind, Result, Storage};

/// What the server says at most: it fits into a socket's buffer, so nobody waits.
const MOST: usize = 64 << 10;
/// Bytes of each request.
const LEN: usize = 2048;

fn clock() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Opens the server's export, and reads, asks for extents, writes, zeroes, discards and flushes.
pub fn serve(data: &[u8]) {
    let Some((flags, lines)) = data.split_first() else {
        return;
    };
    let Ok((ours, mut theirs)) = UnixStream::pair() else {
        return;
    };
    let said = theirs.write_all(&lines[..lines.len().min(MOST)]);
    if said.and_then(|()| theirs.shutdown(Shutdown::Write)).is_err() {
        return;
    }
    let options = NbdOptions {
        address: NbdAddress::Unix(String::new()),
        export: if flags & 2 == 0 { "" } else { "x" }.to_owned(),
        name: "nbd".to_owned(),
        writable: flags & 1 != 0,
        timeout: Duration::from_secs(20),
        clock,
        tls: None,
        cancel: CancelToken::new(),
    };
    // What has been said and unread when this side goes does not matter to anybody.
    if let Some(storage) = told("open", NbdStorage::over(ours, options)) {
        use_it(&storage);
    }
    drop(theirs);
}

fn told<T>(verb: &str, result: Result<T>) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    let text = error.to_string();
    assert!(
        !text.is_empty() && !text.contains(['\n', '\u{1b}']),
        "{verb}: {text:?} is no line of text"
    );
    let late = error
        .io_error()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut);
    assert!(
        error.kind() != ErrorKind::Io || !late,
        "{verb}: waits for a server that is gone"
    );
    None
}

fn use_it(storage: &NbdStorage) {
    let Some(size) = told("len", storage.len()) else { return };
    let mut buf = vec![0; LEN.min(usize::try_from(size).unwrap_or(LEN))];
    told("read", storage.read_at(0, &mut buf));
    let mut at = 0;
    for _ in 0..4 {
        if at >= size {
            break;
        }
        let Some(extent) = told("extent", storage.extent(at, size - at)) else {
            break;
        };
        assert!(
            extent.len > 0 && extent.len <= size - at,
            "an extent of {} bytes at {at:#x}",
            extent.len
        );
        at += extent.len;
    }
    let len = buf.len() as u64;
    told("write", storage.write_at(0, &buf));
    told("zero", storage.write_zeroes(0, len, true));
    told("discard", storage.discard(0, len));
    told("flush", storage.flush());
}
