//! Imports that make a file: from a web server, and in another format.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

#[path = "../common/mod.rs"]
mod common;
mod whole;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Lab, NONE, code, import, quick_config, sample};
use vdisk_service::model::JobState;
use vdisk_service::request::{ImportImage, ImportOutcome, ImportSource};
use vdisk_service::{ErrorCode, Service, ServiceConfig};

/// Serves the bytes with ranges until the test ends.
fn serve(bytes: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/disk.img", listener.local_addr().unwrap());
    let bytes = Arc::new(bytes);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let bytes = bytes.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut stream = stream;
                loop {
                    let (mut range, mut head, mut lines) = (None, false, 0);
                    loop {
                        let mut line = String::new();
                        if reader.read_line(&mut line).unwrap_or(0) == 0 {
                            return;
                        }
                        head |= lines == 0 && line.starts_with("HEAD");
                        lines += 1;
                        if let Some(found) = line.to_ascii_lowercase().trim().strip_prefix("range: bytes=") {
                            let (from, to) = found.split_once('-').unwrap();
                            let to = to.parse().unwrap_or(bytes.len() - 1);
                            range = Some((from.parse::<usize>().unwrap(), to.min(bytes.len() - 1)));
                        }
                        if line == "\r\n" {
                            break;
                        }
                    }
                    let total = bytes.len();
                    let (status, from, to) = match range {
                        Some((from, to)) => ("206 Partial Content", from, to),
                        None => ("200 OK", 0, total - 1),
                    };
                    let answer = format!(
                        "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{to}/{total}\r\n\
                         accept-ranges: bytes\r\netag: \"1\"\r\n\r\n",
                        to + 1 - from
                    );
                    let body: &[u8] = if head { &[] } else { &bytes[from..=to] };
                    if stream
                        .write_all(answer.as_bytes())
                        .and_then(|()| stream.write_all(body))
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    url
}

async fn queued(lab: &Lab, request: ImportImage) -> vdisk_service::model::Job {
    match lab.service.import_image(request, &NONE).await.unwrap() {
        ImportOutcome::Queued(job) => job,
        ImportOutcome::Uploading(image) => panic!("{image:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_fetched_as_it_is_or_in_another_format() {
    let lab = Lab::with(|config| config.import_from_private = true).await;
    let bytes = sample(5 << 20, 3);
    let url = serve(bytes.clone());
    for target in [None, Some("raw"), Some("qcow2"), Some("vmdk")] {
        let name = format!("fetched-{}", target.unwrap_or("as-it-is"));
        let mut request = import(&name, Some("raw"), ImportSource::Url(url.clone()));
        request.target_format = target.map(str::to_owned);
        let id = lab
            .succeed(queued(&lab, request).await)
            .await
            .result_image_id()
            .unwrap();
        assert_eq!(lab.service.image(id).await.unwrap().format, target.unwrap_or("raw"));
        assert!(lab.data(id).await == bytes, "{name}");
    }
    lab.assert_tidy().await;
}

/// Takes connections and says nothing; tells when somebody came.
fn silent() -> (String, std::sync::mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/disk.img", listener.local_addr().unwrap());
    let (came, coming) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming().flatten() {
            open.push(stream);
            let _ = came.send(());
        }
    });
    (url, coming)
}

async fn met(coming: std::sync::mpsc::Receiver<()>) {
    let waiting = move || coming.recv_timeout(Duration::from_secs(60));
    tokio::task::spawn_blocking(waiting).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_from_a_silent_server_is_cancelled_at_once() {
    let lab = Lab::with(|config| config.import_from_private = true).await;
    let (url, coming) = silent();
    let job = queued(&lab, import("fetched", Some("raw"), ImportSource::Url(url))).await;
    met(coming).await;
    let start = Instant::now();
    lab.service.cancel_job(job.id, &NONE).await.unwrap();
    assert_eq!(lab.finish(job).await.state, JobState::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_from_a_silent_server_is_handed_back_when_the_service_ends() {
    let lab = Lab::with(|config| config.import_from_private = true).await;
    let (url, coming) = silent();
    let job = queued(&lab, import("fetched", Some("raw"), ImportSource::Url(url))).await;
    met(coming).await;
    let start = Instant::now();
    let Lab { dir, service } = lab;
    service.shutdown(Duration::ZERO).await;
    drop(service);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    let config = ServiceConfig {
        workers: 0,
        ..quick_config(dir.path())
    };
    let service = Service::open(config).await.unwrap();
    assert_eq!(service.job(job.id).await.unwrap().state, JobState::Queued);
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_are_not_public_are_refused() {
    let lab = Lab::new().await;
    let url = serve(vec![1; 512]);
    for url in [
        url,
        "http://169.254.169.254/".into(),
        "http://[::1]:9/x".into(),
        "http://localhost/".into(),
    ] {
        let name = "fetched";
        let job = queued(&lab, import(name, Some("raw"), ImportSource::Url(url.clone()))).await;
        assert_eq!(lab.fail(job).await, ErrorCode::Denied, "{url}");
    }
    for url in ["file:///etc/passwd", "ftp://example.org/x", "/etc/passwd", ""] {
        let refused = lab
            .service
            .import_image(import("x", None, ImportSource::Url(url.into())), &NONE);
        assert_eq!(code(refused.await), ErrorCode::InvalidArgument, "{url}");
    }
    assert!(lab.files().is_empty(), "{:?}", lab.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_pool_is_converted_on_the_way_in() {
    let lab = Lab::new().await;
    let bytes = sample(3 << 20, 4);
    std::fs::write(lab.pool().join("disk.img"), &bytes).unwrap();
    let mut request = import("disk", Some("raw"), ImportSource::PoolFile("disk.img".into()));
    request.target_format = Some("qcow2".into());
    let id = lab
        .succeed(queued(&lab, request).await)
        .await
        .result_image_id()
        .unwrap();
    let image = lab.service.image(id).await.unwrap();
    assert_eq!((image.format.as_str(), image.virtual_size), ("qcow2", 3 << 20));
    assert!(lab.data(id).await == bytes);
    assert_eq!(lab.files().len(), 2, "the file that was there stays: {:?}", lab.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_an_image_is_not_imported_again() {
    let lab = Lab::new().await;
    std::fs::write(lab.pool().join("disk.img"), sample(1 << 20, 4)).unwrap();
    let source = || ImportSource::PoolFile("disk.img".into());
    lab.succeed(queued(&lab, import("disk", Some("raw"), source())).await)
        .await;
    for target in [None, Some("qcow2")] {
        let mut request = import("again", Some("raw"), source());
        request.target_format = target.map(str::to_owned);
        let refused = lab.service.import_image(request, &NONE).await;
        assert_eq!(code(refused), ErrorCode::NameTaken, "{target:?}");
    }
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signature_of_a_url_is_not_shown() {
    let lab = Lab::with(|config| config.import_from_private = true).await;
    let bytes = sample(100_000, 5);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (name, url) in [("there", serve(bytes)), ("away", format!("http://{closed}/disk.img"))] {
        let source = ImportSource::Url(format!("{url}?sig=TOPSECRET"));
        let request = import(name, Some("raw"), source);
        let ImportOutcome::Queued(job) = lab.service.import_image(request, &NONE).await.unwrap() else {
            panic!("a job was asked for")
        };
        let done = lab.finish(job).await;
        let shown = serde_json::to_string(&done).unwrap();
        assert!(shown.contains("/disk.img") && !shown.contains("TOPSECRET"), "{shown}");
    }
}
