//! Imports from servers without byte ranges.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vdisk_service::model::{Job, JobState};
use vdisk_service::request::{ImportSource, UpdateJob};
use vdisk_service::{ErrorCode, Service, ServiceConfig};

use super::common::{Lab, import, json, quick_config, sample};
use super::{NONE, met, queued};

/// Answers each request, the first with number 0, as the test says, and closes the connection.
fn serve(answer: impl Fn(usize, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/disk.img", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for (number, mut stream) in listener.incoming().flatten().enumerate() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let _request: Vec<_> = lines
                    .map_while(|line| line.ok().filter(|line| !line.is_empty()))
                    .collect();
                let _ = answer(number, &mut stream);
            });
        }
    });
    url
}

fn begin(out: &mut TcpStream, len: usize) -> std::io::Result<()> {
    write!(out, "HTTP/1.0 200 OK\r\nContent-Length: {len}\r\n\r\n")
}

fn with_length(out: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    begin(out, bytes.len())?;
    out.write_all(bytes)
}

fn in_chunks<'a>(out: &mut TcpStream, chunks: impl Iterator<Item = &'a [u8]>) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for chunk in chunks {
        write!(out, "{:x}\r\n", chunk.len())?;
        out.write_all(chunk)?;
        out.write_all(b"\r\n")?;
    }
    Ok(())
}

async fn fetching(lab: &Lab, name: &str, url: &str, target: Option<&str>) -> Job {
    let mut request = import(name, Some("raw"), ImportSource::Url(url.to_owned()));
    request.target_format = target.map(str::to_owned);
    queued(lab, request).await
}

async fn private_lab() -> Lab {
    Lab::with(|config| config.import_from_private = true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_is_imported_from() {
    let lab = private_lab().await;
    let bytes = sample(5 << 20, 6);
    let (one, other) = (bytes.clone(), bytes.clone());
    let urls = [
        ("length", serve(move |_, out| with_length(out, &one))),
        (
            "chunks",
            serve(move |_, out| in_chunks(out, other.chunks(100_000).chain([&[][..]]))),
        ),
    ];
    for (manner, url) in urls {
        for target in [None, Some("qcow2")] {
            let name = format!("{manner}-{}", target.unwrap_or("as-it-is"));
            let job = fetching(&lab, &name, &url, target).await;
            let done = lab.succeed(job).await;
            let progress = &done.progress;
            assert_eq!(Some(progress.done_bytes), progress.total_bytes, "{name}");
            assert!(progress.done_bytes >= bytes.len() as u64, "{name}: {progress:?}");
            let id = done.result_image_id().unwrap();
            assert_eq!(lab.service.image(id).await.unwrap().format, target.unwrap_or("raw"));
            assert!(lab.data(id).await == bytes, "{name}");
        }
    }
    lab.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_ends_early_is_no_image() {
    let lab = private_lab().await;
    let bytes = sample(2 << 20, 7);
    let other = bytes.clone();
    let urls = [
        serve(move |_, out| {
            begin(out, bytes.len())?;
            out.write_all(&bytes[..bytes.len() - 1])
        }),
        // The last chunk does not come.
        serve(move |_, out| in_chunks(out, other.chunks(100_000))),
    ];
    for url in urls {
        let job = fetching(&lab, "disk", &url, None).await;
        assert_eq!(lab.fail(job).await, ErrorCode::Io);
        assert!(lab.files().is_empty(), "{:?}", lab.files());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_file_ends_at_the_limit() {
    let lab = Lab::with(|config| {
        config.import_from_private = true;
        config.limits.virtual_size = 4 << 20;
    })
    .await;
    let url = serve(|_, out| in_chunks(out, std::iter::repeat(&[7; 100_000][..])));
    let job = fetching(&lab, "disk", &url, None).await;
    assert_eq!(lab.fail(job).await, ErrorCode::LimitExceeded);
    assert!(lab.files().is_empty(), "{:?}", lab.files());
}

/// Gives half of the file to who asks for it second, says so, and stops there; gives the others all of it.
fn stuck_once(bytes: Vec<u8>) -> (String, mpsc::Receiver<()>) {
    let (there, half) = mpsc::channel();
    let there = Mutex::new(there);
    let url = serve(move |number, out| {
        if number != 1 {
            return with_length(out, &bytes);
        }
        begin(out, bytes.len())?;
        out.write_all(&bytes[..bytes.len() / 2])?;
        let _ = there.lock().unwrap().send(());
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    (url, half)
}

async fn until_fetched(lab: &Lab, job: &Job, bytes: u64) {
    for _ in 0..2000 {
        if lab.service.job(job.id).await.unwrap().progress.done_bytes >= bytes {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{bytes} bytes do not come");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_cancelled_in_the_middle_of_the_file() {
    let lab = private_lab().await;
    let (url, half) = stuck_once(sample(4 << 20, 8));
    let job = fetching(&lab, "disk", &url, None).await;
    met(half).await;
    until_fetched(&lab, &job, 1 << 20).await;
    let start = Instant::now();
    lab.service.cancel_job(job.id, &NONE).await.unwrap();
    assert_eq!(lab.finish(job).await.state, JobState::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert!(lab.files().is_empty(), "{:?}", lab.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_the_service_leaves_begins_anew() {
    let lab = private_lab().await;
    let bytes = sample(4 << 20, 9);
    let (url, half) = stuck_once(bytes.clone());
    let job = fetching(&lab, "disk", &url, Some("qcow2")).await;
    met(half).await;
    until_fetched(&lab, &job, 1 << 20).await;
    let Lab { dir, service } = lab;
    service.shutdown(Duration::ZERO).await;
    drop(service);
    let config = ServiceConfig {
        import_from_private: true,
        ..quick_config(dir.path())
    };
    let service = Service::open(config).await.unwrap();
    let lab = Lab { dir, service };
    let id = lab.succeed(job).await.result_image_id().unwrap();
    assert!(lab.data(id).await == bytes);
    lab.assert_tidy().await;
}

/// A server that sends the first MiB, and the rest when the test says so.
fn in_two_parts(bytes: Vec<u8>) -> (String, Sender<()>) {
    let (go, going) = mpsc::channel();
    let going = Mutex::new(going);
    let url = serve(move |number, out| {
        let (first, rest) = bytes.split_at(1 << 20);
        begin(out, bytes.len())?;
        out.write_all(first)?;
        if number > 0 {
            let _ = going.lock().unwrap().recv();
        }
        out.write_all(rest)
    });
    (url, go)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_paused_and_slowed() {
    let lab = private_lab().await;
    let bytes = sample(5 << 20, 10);
    let (url, go) = in_two_parts(bytes.clone());
    let job = fetching(&lab, "disk", &url, None).await;
    until_fetched(&lab, &job, 1 << 20).await;
    lab.service.pause_job(job.id, &NONE).await.unwrap();
    // Until the worker has heard of it, which takes a second at most where the machine has time for it.
    tokio::time::sleep(Duration::from_secs(5)).await;
    go.send(()).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let paused = lab.service.job(job.id).await.unwrap();
    assert_eq!((paused.state, paused.progress.done_bytes), (JobState::Paused, 1 << 20));
    let slow: UpdateJob = json(serde_json::json!({"rate_limit": 2 << 20}));
    lab.service.update_job(job.id, slow).await.unwrap();
    let start = Instant::now();
    lab.service.resume_job(job.id, &NONE).await.unwrap();
    let id = lab.succeed(job).await.result_image_id().unwrap();
    assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(lab.data(id).await == bytes);
}
