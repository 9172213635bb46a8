//! The process that lets things happen to others, and looks at what they leave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::act::act;
use crate::child::{CASE, Case, READY, What, end_with_the_first_panic, open};
use crate::images::base;
use crate::scene::Verb;
use crate::verify::verify;

const DISK: &str = "VDISK_TEST_DISK_URL";

/// A server for the disks that are fetched, which also takes whatever is posted to it.
pub fn disk_url() -> String {
    std::env::var(DISK).unwrap()
}

/// Where webhooks go.
pub fn sink_url() -> String {
    disk_url()
}

/// Folders are in memory where there is room.
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// A started process of a case.
pub struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Process {
    pub fn start(case: &Case, disk: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["child::case", "--exact", "--nocapture"])
            .env(CASE, serde_json::to_string(case).unwrap());
        let errors = std::fs::File::create(case.dir.join("stderr")).unwrap();
        let mut child = command
            .env(DISK, disk)
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// Waits until everything is made ready.
    pub fn until_ready(&mut self, case: &Case) {
        let mut line = String::new();
        while self.out.read_line(&mut line).unwrap() > 0 {
            if line.trim().ends_with(READY) {
                return;
            }
            line.clear();
        }
        panic!("{case:?} ended before it was ready\n{}", errors(case));
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end: what it said, and whether it ended by itself and well.
    pub fn end(mut self) -> (String, Ending) {
        let mut said = String::new();
        self.out.read_to_string(&mut said).unwrap();
        let status = self.child.wait().unwrap();
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
        let ending = match status.success() {
            true => Ending::Well,
            false if killed => Ending::Killed,
            false => Ending::Badly,
        };
        (said, ending)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Well,
    Killed,
    Badly,
}

/// What the process of a case wrote to its standard error.
pub fn errors(case: &Case) -> String {
    std::fs::read_to_string(case.dir.join("stderr")).unwrap_or_default()
}

/// A case in a folder of its own.
pub fn new_case(verb: Verb, what: What) -> (TempDir, Case) {
    let dir = folder();
    let case = Case {
        verb,
        dir: dir.path().to_owned(),
        goes_on: false,
        what,
    };
    (dir, case)
}

/// Starts the service where a process died, asks again as a client would, and looks at everything.
pub fn look(case: &Case, disk: &str) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["parent::looks", "--exact", "--nocapture"])
        .env(CASE, serde_json::to_string(case).unwrap())
        .env(DISK, disk)
        .output()
        .unwrap();
    assert!(
        status.status.success(),
        "{case:?}\n{}",
        String::from_utf8_lossy(&status.stderr)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks() {
    let Ok(case) = std::env::var(CASE) else { return };
    end_with_the_first_panic();
    let case: Case = serde_json::from_str(&case).unwrap();
    let mut scene = open(&case).await;
    act(&mut scene, 0).await.unwrap();
    verify(&scene, false).await;
    scene.lab().service.shutdown(Duration::from_secs(5)).await;
}

/// Does something for each item, several at the same time: more than there are processors, since most of a case is waiting.
pub fn side_by_side<T: Send + Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..(4 * cores).min(16) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

/// A number from the environment, or what is usual.
pub fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(usual)
}

/// Serves the disk, with ranges, and swallows what is posted, until the program ends. Gives the URL.
pub fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/disk.img", listener.local_addr().unwrap());
    let bytes = Arc::new(base());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let bytes = bytes.clone();
            std::thread::spawn(move || answer(&stream, &bytes));
        }
    });
    url
}

/// Answers requests of one connection; a broken one ends it.
fn answer(mut stream: &std::net::TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut lines, mut line) = (Vec::new(), String::new());
        while reader.read_line(&mut line)? > 0 && line != "\r\n" {
            lines.push(std::mem::take(&mut line).to_ascii_lowercase());
        }
        let Some(first) = lines.first() else { return Ok(()) };
        let header = |name: &str| {
            lines
                .iter()
                .find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
        };
        if first.starts_with("post") {
            let length: usize = header("content-length:")
                .and_then(|text| text.parse().ok())
                .unwrap_or(0);
            reader.read_exact(&mut vec![0; length])?;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
            continue;
        }
        let end = bytes.len() - 1;
        let range = header("range: bytes=").and_then(|range| {
            let (from, to) = range.split_once('-')?;
            Some((from.parse().ok()?, to.parse().unwrap_or(end).min(end)))
        });
        let status = if range.is_some() {
            "206 Partial Content"
        } else {
            "200 OK"
        };
        let (from, to): (usize, usize) = range.unwrap_or((0, end));
        let (length, total) = (to + 1 - from, bytes.len());
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-length: {length}\r\ncontent-range: bytes {from}-{to}/{total}\r\naccept-ranges: bytes\r\n\r\n"
        )?;
        if !first.starts_with("head") {
            stream.write_all(&bytes[from..=to])?;
        }
    }
}
