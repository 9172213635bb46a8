//! Files on web servers as sources of `vdisk`.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use common::{ok, vdisk};

/// Serves byte ranges of the files of a folder until the test ends; gives the URL of the folder.
fn serve(folder: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let folder = folder.clone();
            std::thread::spawn(move || while answer(&stream, &folder).is_some() {});
        }
    });
    url
}

fn answer(mut stream: &TcpStream, folder: &Path) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let asked = lines.next()?.ok()?;
    let name = asked.split([' ', '?']).nth(1)?;
    if let Some(to) = name.strip_prefix("/moved/") {
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: http://{to}\r\nContent-Length: 0\r\n\r\n"
        )
        .ok();
    }
    let path: PathBuf = folder.join(name.trim_start_matches('/'));
    let range = lines
        .map_while(Result::ok)
        .take_while(|l| !l.is_empty())
        .map(|l| l.to_ascii_lowercase())
        .filter_map(|l| l.strip_prefix("range: bytes=").map(str::to_owned))
        .last()?;
    let Ok(bytes) = std::fs::read(path) else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").ok();
    };
    let (first, last) = range.split_once('-')?;
    let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
    let part = bytes.get(first..=last)?;
    let (len, all) = (part.len(), bytes.len());
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {len}\r\nContent-Range: bytes {first}-{last}/{all}\r\n\r\n"
    )
    .ok()?;
    stream.write_all(part).ok()
}

fn files(folder: &Path) {
    let bytes: Vec<u8> = (0..3 << 20).map(|i: u32| (i / 4096 % 7) as u8).collect();
    std::fs::write(folder.join("disk"), bytes).unwrap();
    ok(folder, &["convert", "-c", "-O", "qcow2", "disk", "disk.qcow2"]);
}

#[test]
fn an_image_on_a_server_is_converted_under_each_of_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    files(path);
    let url = serve(path);
    let json =
        format!(r#"json:{{"driver":"qcow2","file":{{"driver":"http","url":"{url}/disk.qcow2","readahead":65536}}}}"#);
    for name in [&format!("{url}/disk"), &format!("{url}/disk.qcow2"), &json] {
        ok(path, &["convert", "-O", "raw", name, "out"]);
        assert!(
            std::fs::read(path.join("disk")).unwrap() == std::fs::read(path.join("out")).unwrap(),
            "{name}"
        );
    }
    let list = format!("driver=qcow2,file.driver=http,file.url={url}/disk.qcow2,file.timeout=5");
    ok(path, &["convert", "--image-opts", &list, "-O", "raw", "out"]);
    ok(path, &["compare", "disk", "out"]);
}

#[test]
fn a_base_on_a_server_is_read_through_the_overlay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    files(path);
    let base = format!("{}/disk.qcow2", serve(path));
    ok(
        path,
        &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", "top"],
    );
    ok(path, &["compare", "disk", "top"]);
}

#[test]
fn facts_name_the_url() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    files(path);
    let name = format!("{}/disk", serve(path));
    let text = ok(path, &["info", "-f", "raw", &name]);
    let expected = format!(
        "image: {name}\nfile format: raw\nvirtual size: 3 MiB (3145728 bytes)\ndisk size: unavailable\nChild node '/file':\n    \
         filename: {name}\n    protocol type: http\n    file length: 3 MiB (3145728 bytes)\n    disk size: unavailable\n"
    );
    assert_eq!(text, expected);
}

#[test]
fn writing_and_wrong_options_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    files(path);
    let url = format!("{}/disk", serve(path));
    for (args, why) in [
        (
            vec!["convert", "-n", "-O", "raw", "disk", &url],
            "does not support writes",
        ),
        (
            vec!["create", "-f", "raw", &url, "1M"],
            "does not support image creation",
        ),
        (vec!["info", &format!("{url}2")], "404"),
        (
            vec!["info", "json:{'driver':'https','url':'http://h/x'}"],
            "expected 'https://'",
        ),
        (
            vec!["info", "json:{'driver':'http','url':'http://h/x','cookie':'a'}"],
            "'cookie'",
        ),
    ] {
        let out = vdisk(path, &args);
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(1) && error.contains(why), "{args:?}: {error}");
    }
}

/// RFC 3986, 5.2: the query is no part of the folder, and `..` is followed.
#[test]
fn names_in_an_image_start_from_the_folder_of_its_url() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    files(path);
    std::fs::create_dir(path.join("sub")).unwrap();
    for (image, base) in [("top", "disk"), ("sub/up", "../disk")] {
        ok(
            path,
            &[
                "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "raw", image, "3M",
            ],
        );
    }
    let url = serve(path);
    for image in ["top", "top?sig=a/b", "sub/up", "sub/up?x=/"] {
        ok(path, &["compare", &format!("{url}/{image}"), "disk"]);
    }
    let facts = ok(path, &["info", &format!("{url}/sub/up?x=/")]);
    assert!(
        facts.contains(&format!("backing file: ../disk (actual path: {url}/disk)")),
        "{facts}"
    );
}

#[test]
fn redirections_lead_to_other_servers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    files(path);
    let (first, second) = (serve(path), serve(path));
    let to = second.trim_start_matches("http://");
    ok(path, &["compare", &format!("{first}/moved/{to}/disk"), "disk"]);
}
