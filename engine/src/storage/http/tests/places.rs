//! Where requests may go: redirections, addresses that are not allowed, names that are no URLs.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::{Ask, failure, good, open, options, serve};
use crate::storage::http::{HttpOptions, HttpStorage, is_public_web};
use crate::{ErrorKind, Storage};

#[test]
fn redirections_stay_on_the_server() {
    for to in [
        "http://127.0.0.2:1/disk",
        "https://127.0.0.1/disk",
        "file:///etc/passwd",
        "//127.0.0.2/x",
        "",
    ] {
        let error = failure(move |_, out| write!(out, "HTTP/1.1 302 x\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(error.kind(), ErrorKind::Denied, "{to}: {error}");
    }
    let again =
        |_: &Ask, out: &mut TcpStream| write!(out, "HTTP/1.1 302 x\r\nLocation: /disk\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(failure(again).kind(), ErrorKind::Denied);
    let moved = serve(|ask, out| match ask.path.as_str() {
        "/disk" => write!(out, "HTTP/1.1 301 x\r\nLocation: /new\r\nContent-Length: 0\r\n\r\n"),
        _ => good(ask, out),
    });
    assert_eq!(open(&moved).unwrap().len().unwrap(), 100_000);
}

/// RFC 9110, 10.2.2: the target of a redirection is a reference.
#[test]
fn redirections_start_from_where_they_are_found() {
    for to in ["new", "./x/../new", "?new", "/new#part"] {
        let moved = serve(move |ask, out| match ask.path.as_str() {
            "/disk" => write!(out, "HTTP/1.1 307 x\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"),
            "/new" | "/disk?new" => good(ask, out),
            other => panic!("{other}"),
        });
        assert_eq!(open(&moved).unwrap().len().unwrap(), 100_000, "{to}");
    }
}

#[test]
fn redirections_lead_to_other_servers_where_that_is_asked_for() {
    let other = serve(good);
    let away = |to: String| {
        let server = serve(move |_, out| write!(out, "HTTP/1.1 302 x\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"));
        HttpStorage::open(&HttpOptions {
            other_servers: true,
            ..options(&server)
        })
    };
    assert_eq!(away(format!("http://{other}/disk")).unwrap().len().unwrap(), 100_000);
    assert_eq!(
        away("file:///etc/passwd".to_owned()).unwrap_err().kind(),
        ErrorKind::Denied
    );
}

#[test]
fn redirections_lead_to_no_other_server_whatever_their_status() {
    let other = serve(|_, _| panic!("nobody was to connect"));
    for status in [301, 302, 303, 307, 308] {
        for to in [
            other.as_str(),
            "http://169.254.169.254/",
            "https://8.8.8.8/",
            "file:///etc/passwd",
            "//8.8.8.8/",
        ] {
            let to = to.to_owned();
            let away = move |_: &Ask, out: &mut TcpStream| {
                write!(
                    out,
                    "HTTP/1.1 {status} x\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"
                )
            };
            assert_eq!(open(&serve(away)).unwrap_err().kind(), ErrorKind::Denied, "{status}");
        }
    }
}

#[test]
fn addresses_that_are_not_allowed_are_not_connected_to() {
    let options = HttpOptions {
        allow: Arc::new(is_public_web),
        ..options(&serve(|_, _| panic!("nobody was to connect")))
    };
    assert_eq!(HttpStorage::open(&options).unwrap_err().kind(), ErrorKind::Denied);
}

/// Every spelling of a place that a service must not be sent to, at the port of a server that would see it.
#[test]
fn no_spelling_of_a_place_inside_is_connected_to() {
    let server = serve(|_, _| panic!("nobody was to connect"));
    let port = server.rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();
    let hosts = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "0",
        "0.0.0.0",
        "[::]",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[fe80::1]",
        "[fe80::1%25lo]",
        "[fe80::1%lo]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "169.254.169.254",
        "100.64.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "foo.localhost",
        "127.0.0.1.",
        "127\u{3002}0\u{3002}0\u{3002}1",
        "\u{ff11}27.0.0.1",
        "ok@127.0.0.1",
        "8.8.8.8@127.0.0.1",
        "127.0.0.1\\@8.8.8.8",
        "127.0.0.1\t",
        "127.0.0.1\r\nHost: x",
    ];
    let urls = hosts.iter().map(|host| format!("http://{host}:{port}/disk"));
    let others = [
        format!("http://127.0.0.1:{port}#@8.8.8.8/"),
        "http://8.8.8.8:22/".to_owned(),
        "http://8.8.8.8:25/".to_owned(),
        "http://8.8.8.8:6379/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "gopher://8.8.8.8/".to_owned(),
        "unix:/run/docker.sock".to_owned(),
        "http+unix://%2frun%2fdocker.sock/".to_owned(),
    ];
    for url in urls.chain(others) {
        let options = HttpOptions {
            retries: 0,
            timeout: Duration::from_secs(20),
            ..HttpOptions::new(url.as_str(), Arc::new(is_public_web))
        };
        let error = HttpStorage::open(&options).unwrap_err();
        let refused = [ErrorKind::Denied, ErrorKind::InvalidArgument, ErrorKind::Unsupported];
        // A name that means nothing here, or a form that the system does not resolve, leads nowhere either.
        let unknown = error.kind() == ErrorKind::Io && error.to_string().contains("lookup address");
        assert!(refused.contains(&error.kind()) || unknown, "{url}: {error}");
    }
}

#[test]
fn names_that_are_no_urls_are_refused() {
    for url in [
        "disk",
        "ftp://h/x",
        "http://",
        "http:///x",
        "http://u:p@h/x",
        "file:///x",
        "http://h:99999/x",
    ] {
        let error = HttpStorage::open(&HttpOptions::new(url, Arc::new(|_| true))).unwrap_err();
        let kinds = [ErrorKind::InvalidArgument, ErrorKind::Unsupported];
        assert!(kinds.contains(&error.kind()), "{url}: {error}");
    }
}
