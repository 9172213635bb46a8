//! Files of servers that give no parts of them.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Ask, file, options, serve};
use crate::storage::http::{HttpFile, HttpOptions};
use crate::{Error, ErrorKind, Result};

fn whole(out: &mut TcpStream, more: &str) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 200 OK\r\n{more}\r\n\r\n")
}

/// An answer with its length, and so many bytes of it.
fn part_of(out: &mut TcpStream, bytes: usize) -> std::io::Result<()> {
    whole(out, "Content-Length: 100000")?;
    out.write_all(&file()[..bytes])
}

fn chunk(out: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    write!(out, "{:x}\r\n", bytes.len())?;
    out.write_all(bytes)?;
    out.write_all(b"\r\n")
}

fn broken() -> std::io::Result<()> {
    Err(std::io::ErrorKind::Other.into())
}

/// The file as it is taken from there.
fn taken(options: &HttpOptions) -> Result<Vec<u8>> {
    let HttpFile::Whole(body) = HttpFile::open(options)? else {
        panic!("the server gives no parts");
    };
    let mut bytes = Vec::new();
    let len = body.read(&mut |offset, piece| {
        // It goes on, or begins anew.
        assert!(offset == bytes.len() as u64 || offset == 0);
        bytes.truncate(usize::try_from(offset).unwrap());
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    assert_eq!(len, bytes.len() as u64);
    Ok(bytes)
}

fn failure(handle: impl Fn(&Ask, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Error {
    let began = Instant::now();
    let error = taken(&options(&serve(handle))).expect_err("the server is not to be trusted");
    assert!(began.elapsed() < Duration::from_secs(5), "{error}");
    error
}

#[test]
fn a_server_without_ranges_gives_its_file() {
    let address = serve(|_, out| part_of(out, 100_000));
    assert!(taken(&options(&address)).unwrap() == file());
    let HttpFile::Whole(body) = HttpFile::open(&options(&address)).unwrap() else {
        panic!("the server gives no parts");
    };
    assert_eq!(body.announced(), Some(100_000));
    let empty = serve(|_, out| whole(out, "Content-Length: 0"));
    assert_eq!(taken(&options(&empty)).unwrap(), b"");
}

#[test]
fn a_server_with_ranges_is_read_in_parts() {
    let address = serve(super::good);
    assert!(matches!(HttpFile::open(&options(&address)), Ok(HttpFile::Parts(_))));
}

#[test]
fn chunks_are_taken_to_the_last_one() {
    let address = serve(|_, out| {
        whole(out, "Transfer-Encoding: chunked")?;
        for bytes in file().chunks(33_333) {
            chunk(out, bytes)?;
        }
        chunk(out, b"")
    });
    assert!(taken(&options(&address)).unwrap() == file());
}

#[test]
fn a_file_that_does_not_come_to_its_end_is_none() {
    let short = |_: &Ask, out: &mut TcpStream| part_of(out, 99_999).and_then(|()| broken());
    assert_eq!(failure(short).kind(), ErrorKind::Io);
    let unfinished = |_: &Ask, out: &mut TcpStream| {
        whole(out, "Transfer-Encoding: chunked")?;
        chunk(out, &file())?;
        broken()
    };
    assert_eq!(failure(unfinished).kind(), ErrorKind::Io);
    // Its end would be no other than that of a broken connection.
    let without = |_: &Ask, out: &mut TcpStream| {
        whole(out, "Connection: close")?;
        out.write_all(&file())?;
        broken()
    };
    assert_eq!(failure(without).kind(), ErrorKind::Unsupported);
}

#[test]
fn what_breaks_off_begins_anew() {
    // The first request looks for ranges.
    let address = serve(|ask, out| match ask.number {
        0 => part_of(out, 100_000),
        1 => part_of(out, 60_000).and_then(|()| broken()),
        2 => write!(out, "HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n"),
        _ => part_of(out, 100_000),
    });
    let options = HttpOptions {
        retries: 2,
        ..options(&address)
    };
    assert!(taken(&options).unwrap() == file());
}

#[test]
fn the_limit_holds_as_the_bytes_come() {
    let endless = serve(|_, out| {
        whole(out, "Transfer-Encoding: chunked")?;
        loop {
            chunk(out, &[7; 100_000])?;
        }
    });
    let options_to = |address: &str| HttpOptions {
        max_len: 3 << 20,
        retries: 3,
        ..options(address)
    };
    assert_eq!(
        taken(&options_to(&endless)).unwrap_err().kind(),
        ErrorKind::LimitExceeded
    );
    let announced = serve(|_, out| whole(out, "Content-Length: 3145729"));
    let error = HttpFile::open(&options_to(&announced)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
}

#[test]
fn bytes_that_come_too_slowly_are_not_waited_for() {
    let drip = |ask: &Ask, out: &mut TcpStream| {
        if ask.number == 0 {
            return part_of(out, 0);
        }
        whole(out, "Content-Length: 100000")?;
        loop {
            out.write_all(b"a")?;
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    assert_eq!(failure(drip).kind(), ErrorKind::Io);
}

#[test]
fn waiting_for_the_rest_ends_on_request() {
    let stuck = serve(|_, out| {
        part_of(out, 50_000)?;
        std::thread::sleep(Duration::from_secs(20));
        broken()
    });
    let options = HttpOptions {
        timeout: Duration::from_secs(20),
        ..options(&stuck)
    };
    let (began, cancel) = (Instant::now(), options.cancel.clone());
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        cancel.cancel();
    });
    assert_eq!(taken(&options).unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn an_error_of_who_takes_it_is_not_tried_again() {
    let address = serve(|_, out| part_of(out, 100_000));
    let options = HttpOptions {
        retries: 5,
        ..options(&address)
    };
    let HttpFile::Whole(body) = HttpFile::open(&options).unwrap() else {
        panic!("the server gives no parts");
    };
    let mut taken = 0;
    let full = body.read(&mut |_, _| {
        taken += 1;
        Err(Error::io("no room", std::io::ErrorKind::StorageFull))
    });
    assert_eq!(
        (full.unwrap_err().io_kind(), taken),
        (Some(std::io::ErrorKind::StorageFull), 1)
    );
}

#[test]
fn the_rules_for_addresses_and_redirections_are_those_for_ranges() {
    let away = serve(|_, out| {
        write!(
            out,
            "HTTP/1.1 302 x\r\nLocation: http://127.0.0.2:1/\r\nContent-Length: 0\r\n\r\n"
        )
    });
    assert_eq!(HttpFile::open(&options(&away)).unwrap_err().kind(), ErrorKind::Denied);
    let moved = serve(|ask, out| match ask.path.as_str() {
        "/disk" => write!(out, "HTTP/1.1 301 x\r\nLocation: /new\r\nContent-Length: 0\r\n\r\n"),
        _ => part_of(out, 100_000),
    });
    assert!(taken(&options(&moved)).unwrap() == file());
    let private = HttpOptions {
        allow: Arc::new(crate::storage::is_public_web),
        ..options(&serve(|_, _| panic!("nobody was to connect")))
    };
    assert_eq!(HttpFile::open(&private).unwrap_err().kind(), ErrorKind::Denied);
}
