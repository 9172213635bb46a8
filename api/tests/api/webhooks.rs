//! Webhooks: signed, in order, tried again, lost by no restart.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::server::Server;

const SECRET: &str = "a secret of the test's own";

/// A target that answers with the statuses it is told, then 204.
struct Target {
    url: String,
    taken: Receiver<(String, String)>,
}

impl Target {
    fn start(listener: TcpListener, statuses: Vec<u16>) -> Self {
        Self::slow(listener, statuses, Duration::ZERO)
    }

    /// One that takes its time for each answer.
    fn slow(listener: TcpListener, statuses: Vec<u16>, pause: Duration) -> Self {
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (sender, taken) = channel();
        std::thread::spawn(move || serve(&listener, statuses.into_iter(), pause, &sender));
        Self { url, taken }
    }

    fn next(&self) -> (String, Value) {
        let (head, body) = self.taken.recv_timeout(Duration::from_secs(90)).unwrap();
        (head, serde_json::from_str(&body).unwrap())
    }
}

fn serve(
    listener: &TcpListener,
    mut statuses: impl Iterator<Item = u16>,
    pause: Duration,
    sender: &Sender<(String, String)>,
) {
    while let Ok((mut stream, _)) = listener.accept() {
        let mut text = String::new();
        let mut buffer = [0; 4096];
        let body = loop {
            let read = stream.read(&mut buffer).unwrap();
            text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = field(head, "content-length").parse::<usize>().unwrap();
                if body.len() >= length {
                    break body.to_owned();
                }
            }
            assert!(read > 0, "broke off: {text}");
        };
        std::thread::sleep(pause);
        let status = statuses.next().unwrap_or(204);
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nlocation: http://127.0.0.1:1/\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).unwrap();
        if (200..300).contains(&status)
            && sender
                .send((text.split("\r\n\r\n").next().unwrap().to_owned(), body))
                .is_err()
        {
            return;
        }
    }
}

fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let line = head
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
    line.and_then(|line| line.split_once(':'))
        .map_or("", |(_, value)| value.trim())
}

async fn allowed() -> Server {
    Server::start_with(|config| config.webhooks_anywhere = true).await
}

async fn register(server: &Server, url: &str, more: Value) -> Value {
    let mut body = json!({"url": url, "secret": SECRET});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    server.post("/v1/webhooks", body).await.expect(StatusCode::CREATED).body
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_delivered_in_order_signed_and_again_after_failures() {
    let server = allowed().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::start(listener, vec![500, 302]);
    let made = register(
        &server,
        &target.url,
        json!({"events": ["image.created", "image.deleted"]}),
    )
    .await;
    assert!(!made.to_string().contains(SECRET), "{made}");
    let image = server.create("disk", json!({"virtual_size": 1_048_576})).await;
    server
        .delete(&format!("/v1/images/{image}"))
        .await
        .expect(StatusCode::NO_CONTENT);
    let (head, first) = target.next();
    let (_, second) = target.next();
    assert_eq!(
        (&first["type"], &second["type"]),
        (&json!("image.created"), &json!("image.deleted"))
    );
    assert_eq!(
        (&first["image_id"], field(&head, "x-vdisk-event")),
        (&json!(image), first["seq"].to_string().as_str())
    );
    assert!(first["seq"].as_u64() < second["seq"].as_u64());

    if e2e::tools::have(&["openssl"]) {
        let (time, digest) = field(&head, "x-vdisk-signature").split_once(",v1=").unwrap();
        let signed = format!(
            "{}.{}",
            time.strip_prefix("t=").unwrap(),
            serde_json::to_string(&first).unwrap()
        );
        let file = server.dir.path().join("signed");
        std::fs::write(&file, signed).unwrap();
        let openssl = Command::new("openssl")
            .args(["dgst", "-sha256", "-hmac", SECRET])
            .arg(file)
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&openssl.stdout).trim().ends_with(digest));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_target_holds_up_no_other() {
    let server = allowed().await;
    // Taken by the system, and answered by nobody.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", silent.local_addr().unwrap());
    let fast = Target::start(TcpListener::bind("127.0.0.1:0").unwrap(), Vec::new());
    let created = json!({"events": ["image.created"]});
    let slow = register(&server, &url, created.clone()).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    register(&server, &fast.url, created).await;
    let failures = async || server.get(&format!("/v1/webhooks/{slow}")).await.body["failures"].clone();
    server.create("first", json!({"virtual_size": 1_048_576})).await;
    fast.next();
    let mut held = Vec::new();
    // A delivery to the slow target may end meanwhile on a machine that is slow itself: then another one counts.
    for round in 0..5 {
        held.push(silent.accept().unwrap());
        let before = failures().await;
        let image = server
            .create(&format!("disk{round}"), json!({"virtual_size": 1_048_576}))
            .await;
        assert_eq!(fast.next().1["image_id"], image);
        if failures().await == before {
            return server.stop().await;
        }
    }
    panic!("the fast target was told each time when the slow one had failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_webhook_is_told_nothing_more() {
    let server = allowed().await;
    let pause = Duration::from_millis(300);
    let target = Target::slow(TcpListener::bind("127.0.0.1:0").unwrap(), Vec::new(), pause);
    let made = register(&server, &target.url, json!({"events": ["image.created"]})).await;
    for number in 0..8 {
        server
            .create(&format!("disk{number}"), json!({"virtual_size": 1_048_576}))
            .await;
    }
    target.next();
    server
        .delete(&format!("/v1/webhooks/{}", made["id"].as_str().unwrap()))
        .await
        .expect(StatusCode::NO_CONTENT);
    let _told_before = target.taken.try_iter().count();
    tokio::time::sleep(pause * 8).await;
    let after = target.taken.try_iter().count();
    assert!(after <= 1, "{after} deliveries after the end, and one was on its way");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_no_event() {
    let server = allowed().await;
    // Nobody listens yet: the port is kept, not served.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    drop(listener);
    let address = url
        .strip_prefix("http://")
        .unwrap()
        .strip_suffix("/hook")
        .unwrap()
        .to_owned();
    let id = register(&server, &url, json!({"events": ["image.created"]})).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let image = server.create("disk", json!({"virtual_size": 1_048_576})).await;
    let hook = format!("/v1/webhooks/{id}");
    let mut failed = Value::Null;
    for _ in 0..2000 {
        failed = server.get(&hook).await.expect(StatusCode::OK).body;
        if failed["failures"].as_u64() > Some(0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        failed["failures"].as_u64() > Some(0) && failed["problem"].is_string(),
        "{failed}"
    );
    assert!(!failed["problem"].as_str().unwrap().contains("os error"), "{failed}");
    let server = server.restart(|config| config.webhooks_anywhere = true).await;
    let target = Target::start(TcpListener::bind(address).unwrap(), Vec::new());
    assert_eq!(target.next().1["image_id"], image);
    server.delete(&hook).await.expect(StatusCode::NO_CONTENT);
    server.get(&hook).await.problem(404, "not_found");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn this_machine_is_no_target_unless_allowed() {
    let server = Server::start().await;
    let target = Target::start(TcpListener::bind("127.0.0.1:0").unwrap(), Vec::new());
    let id = register(&server, &target.url, json!({})).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    server.create("disk", json!({"virtual_size": 1_048_576})).await;
    for _ in 0..2000 {
        let hook = server.get(&format!("/v1/webhooks/{id}")).await.body;
        if let Some(problem) = hook["problem"].as_str() {
            assert!(problem.contains("may not be connected to"), "{problem}");
            assert!(target.taken.try_recv().is_err());
            return server.stop().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing was tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_read_strictly() {
    let server = Server::start().await;
    let cases = [
        json!({"url": "file:///etc/passwd", "secret": SECRET}),
        json!({"url": "http://user@host/", "secret": SECRET}),
        json!({"url": "http://host/", "secret": "short"}),
        json!({"url": "http://host/", "secret": SECRET, "events": ["job.magic"]}),
        json!({"url": "http://host/"}),
    ];
    for body in cases {
        server.post("/v1/webhooks", body).await.problem(422, "invalid_argument");
    }
    assert_eq!(server.get("/v1/webhooks").await.body["items"], json!([]));
}
