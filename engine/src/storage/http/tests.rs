//! Good servers and bad ones, as a handler that gets the path and the range of a request and writes the whole answer.

mod places;
mod whole;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{HttpOptions, HttpStorage};
use crate::{Error, ErrorKind, Result, Storage};

/// One request.
struct Ask {
    number: usize,
    path: String,
    first: usize,
    last: usize,
}

/// Serves until the test ends; gives the address.
fn serve(handle: impl Fn(&Ask, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (handle, count) = (Arc::new(handle), Arc::new(AtomicUsize::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (handle, count) = (handle.clone(), count.clone());
            std::thread::spawn(move || {
                let mut stream = stream;
                while let Some(mut ask) = read_request(&stream) {
                    ask.number = count.fetch_add(1, Ordering::SeqCst);
                    if handle(&ask, &mut stream).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address.to_string()
}

fn read_request(stream: &TcpStream) -> Option<Ask> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut range = (0, 0);
    for line in lines {
        let line = line.ok()?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some((first, last)) = line.strip_prefix("range: bytes=").and_then(|r| r.split_once('-')) {
            range = (first.parse().ok()?, last.parse().ok()?);
        }
    }
    Some(Ask {
        number: 0,
        path,
        first: range.0,
        last: range.1,
    })
}

fn file() -> Vec<u8> {
    (0..100_000u32).map(|i| (i % 253) as u8).collect()
}

/// The answer of a good server.
fn good(ask: &Ask, out: &mut TcpStream) -> std::io::Result<()> {
    part(
        out,
        &format!("bytes {}-{}/100000", ask.first, ask.last),
        "",
        &file()[ask.first..=ask.last],
    )
}

fn part(out: &mut TcpStream, range: &str, more: &str, bytes: &[u8]) -> std::io::Result<()> {
    let len = bytes.len();
    write!(
        out,
        "HTTP/1.1 206 Partial Content\r\nContent-Range: {range}\r\nContent-Length: {len}\r\n{more}\r\n"
    )?;
    out.write_all(bytes)
}

fn options(address: &str) -> HttpOptions {
    HttpOptions {
        timeout: Duration::from_millis(500),
        retries: 0,
        readahead: 4096,
        ..HttpOptions::new(format!("http://{address}/disk"), Arc::new(|_| true))
    }
}

fn open(address: &str) -> Result<HttpStorage> {
    HttpStorage::open(&options(address))
}

#[test]
fn every_range_of_the_file_reads_as_it_is() {
    let storage = open(&serve(good)).unwrap();
    let file = file();
    assert_eq!(storage.len().unwrap(), 100_000);
    for (at, len) in [
        (0, 1),
        (4095, 2),
        (99_999, 1),
        (1, 9000),
        (50_000, 50_000),
        (0, 100_000),
    ] {
        let mut buf = vec![0; len];
        storage.read_at(at as u64, &mut buf).unwrap();
        assert!(buf == file[at..at + len], "{len} bytes at {at}");
    }
    assert_eq!(
        storage.read_at(99_999, &mut [0; 2]).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}

#[test]
fn small_reads_are_answered_from_what_was_read_ahead() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let storage = open(&serve(move |ask, out| {
        count.fetch_add(1, Ordering::SeqCst);
        good(ask, out)
    }))
    .unwrap();
    for at in 0..4096 {
        storage.read_at(at, &mut [0]).unwrap();
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2, "one for the length, one for the data");
}

/// What opening, and then reading 10 bytes at 5000, fails with.
fn failure(handle: impl Fn(&Ask, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Error {
    let began = Instant::now();
    let done = open(&serve(handle)).and_then(|s| s.read_at(5000, &mut [0; 10]));
    let error = done.expect_err("the server is not to be trusted");
    assert!(began.elapsed() < Duration::from_secs(3), "{error}");
    error
}

/// A server whose first answer is good.
fn later(
    then: impl Fn(&Ask, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> impl Fn(&Ask, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static {
    move |ask, out| {
        if ask.number == 0 {
            good(ask, out)
        } else {
            then(ask, out)
        }
    }
}

#[test]
fn first_answers_that_make_no_sense_are_refused() {
    for (range, what) in [
        ("bytes 0-0/*", "no length"),
        ("bytes 1-1/5", "another byte"),
        ("bytes 0-0/0", "past the end"),
        ("bytes 0-0/18446744073709551615", "past 2^63"),
        ("bytes 0-0/99999999999999999999", "past 2^64"),
        ("bytes +0-0/9", "a sign"),
        ("0-0/9", "no unit"),
        ("", "nothing"),
    ] {
        let error = failure(move |_, out| part(out, range, "", b"x"));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[test]
fn answers_that_are_not_the_range_asked_for_are_refused() {
    for (range, bytes, what) in [
        ("bytes 4096-8190/100000", 4095, "less"),
        ("bytes 0-4095/100000", 4096, "other bytes"),
        ("bytes 4096-8191/100001", 4096, "another length"),
        ("bytes 4096-8191/100000", 4097, "more bytes than it says"),
    ] {
        let error = failure(later(move |_, out| part(out, range, "", &vec![0; bytes])));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[test]
fn a_file_that_changes_is_noticed() {
    let error = failure(|ask, out| {
        let tag = format!("ETag: \"{}\"\r\n", ask.number);
        part(
            out,
            &format!("bytes {}-{}/100000", ask.first, ask.last),
            &tag,
            &file()[ask.first..=ask.last],
        )
    });
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("changed"), "{error}");
}

#[test]
fn endless_answers_end() {
    let chunks = |ask: &Ask, out: &mut TcpStream| {
        let range = format!("bytes {}-{}/100000", ask.first, ask.last);
        write!(
            out,
            "HTTP/1.1 206 x\r\nContent-Range: {range}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )?;
        loop {
            out.write_all(b"5\r\nabcde\r\n")?;
        }
    };
    assert_eq!(failure(later(chunks)).kind(), ErrorKind::Corrupt);
    let headers = |_: &Ask, out: &mut TcpStream| {
        out.write_all(b"HTTP/1.1 206 x\r\n")?;
        loop {
            out.write_all(b"X-More: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")?;
        }
    };
    assert_eq!(failure(headers).kind(), ErrorKind::Io);
}

#[test]
fn answers_that_end_early_are_errors() {
    let short = |ask: &Ask, out: &mut TcpStream| {
        let range = format!("bytes {}-{}/100000", ask.first, ask.last);
        write!(
            out,
            "HTTP/1.1 206 x\r\nContent-Range: {range}\r\nContent-Length: 4096\r\n\r\nabc"
        )?;
        Err(std::io::ErrorKind::Other.into())
    };
    assert_eq!(failure(later(short)).kind(), ErrorKind::Io);
}

#[test]
fn late_answers_end_at_the_timeout() {
    let drip = |ask: &Ask, out: &mut TcpStream| {
        let range = format!("bytes {}-{}/100000", ask.first, ask.last);
        write!(
            out,
            "HTTP/1.1 206 x\r\nContent-Range: {range}\r\nContent-Length: 4096\r\n\r\n"
        )?;
        loop {
            out.write_all(b"a")?;
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    assert_eq!(failure(later(drip)).kind(), ErrorKind::Io);
    let silent = |_: &Ask, _: &mut TcpStream| {
        std::thread::sleep(Duration::from_secs(2));
        Err(std::io::ErrorKind::Other.into())
    };
    assert_eq!(failure(silent).io_kind(), Some(std::io::ErrorKind::TimedOut));
}

#[test]
fn waiting_for_a_server_ends_on_request() {
    let silent = |ask: &Ask, out: &mut TcpStream| {
        if ask.number == 0 {
            return good(ask, out);
        }
        std::thread::sleep(Duration::from_secs(20));
        Err(std::io::ErrorKind::Other.into())
    };
    let in_trouble = |ask: &Ask, out: &mut TcpStream| match ask.number {
        0 => good(ask, out),
        _ => write!(out, "HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n"),
    };
    for address in [serve(silent), serve(in_trouble)] {
        let options = HttpOptions {
            timeout: Duration::from_secs(20),
            retries: 10,
            ..options(&address)
        };
        let storage = HttpStorage::open(&options).unwrap();
        let start = Instant::now();
        let cancel = options.cancel.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            cancel.cancel();
        });
        assert_eq!(
            storage.read_at(0, &mut [0; 10]).unwrap_err().kind(),
            ErrorKind::Cancelled
        );
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        // Whoever asks from now on is not let wait at all.
        assert_eq!(HttpStorage::open(&options).unwrap_err().kind(), ErrorKind::Cancelled);
    }
}

#[test]
fn what_the_server_cannot_do_is_told() {
    let whole = |_: &Ask, out: &mut TcpStream| write!(out, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(failure(whole).kind(), ErrorKind::Unsupported);
    let packed = |_: &Ask, out: &mut TcpStream| part(out, "bytes 0-0/9", "Content-Encoding: gzip\r\n", b"x");
    assert_eq!(failure(packed).kind(), ErrorKind::Unsupported);
    let absent = |_: &Ask, out: &mut TcpStream| write!(out, "HTTP/1.1 404 no\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(failure(absent).io_kind(), Some(std::io::ErrorKind::NotFound));
}

#[test]
fn a_server_in_trouble_is_asked_again() {
    let address = serve(|ask, out| match ask.number % 3 {
        0 => write!(out, "HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n"),
        1 => Err(std::io::ErrorKind::Other.into()),
        _ => good(ask, out),
    });
    let options = HttpOptions {
        retries: 2,
        ..options(&address)
    };
    let storage = HttpStorage::open(&options).unwrap();
    let mut buf = [0; 10];
    storage.read_at(1000, &mut buf).unwrap();
    assert_eq!(buf, file()[1000..1010]);
}

#[test]
fn files_past_the_limit_are_refused() {
    let options = HttpOptions {
        max_len: 99_999,
        ..options(&serve(good))
    };
    assert_eq!(
        HttpStorage::open(&options).unwrap_err().kind(),
        ErrorKind::LimitExceeded
    );
}

#[test]
fn an_empty_file_has_length_0() {
    let empty = |_: &Ask, out: &mut TcpStream| {
        write!(
            out,
            "HTTP/1.1 416 x\r\nContent-Range: bytes */0\r\nContent-Length: 0\r\n\r\n"
        )
    };
    assert_eq!(open(&serve(empty)).unwrap().len().unwrap(), 0);
}
