//! Many clients at once, over both transports, against the program: no server error, no deadlock, bounded memory.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use tonic::transport::Channel;
use vdisk_api::proto::image_service_client::ImageServiceClient;
use vdisk_api::proto::{CreateImageRequest, DeleteImageRequest, ListImagesRequest};

const CLIENTS: u64 = 200;
/// MiB of resident memory that the program may reach.
const MEMORY: u64 = 512;

/// `VDISK_LOAD_SECONDS` makes it longer.
fn duration() -> Duration {
    let given = std::env::var("VDISK_LOAD_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(5))
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    refused: AtomicU64,
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_mixed_clients_meet_no_server_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vdiskd"))
        .args(["serve", "--listen", "127.0.0.1:0", "--log", "error", "--data-dir"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let url: Arc<str> = line.trim().rsplit(' ').next().unwrap().into();
    let program = Program(child);
    let (end, tally) = (Instant::now() + duration(), Arc::<Tally>::default());
    let client = Client::new();
    let channel = Channel::from_shared(url.to_string()).unwrap().connect().await.unwrap();
    let clients = (0..CLIENTS).map(|number| {
        let (url, tally, client, channel) = (url.clone(), tally.clone(), client.clone(), channel.clone());
        tokio::spawn(async move {
            for round in 0.. {
                if Instant::now() > end {
                    return;
                }
                let name = format!("c{number}-r{round}");
                if number % 2 == 0 {
                    http(&client, &url, &name, &tally).await;
                } else {
                    grpc(channel.clone(), &name, &tally).await;
                }
            }
        })
    });
    let all = futures::future::join_all(clients.collect::<Vec<_>>());
    let ended = tokio::time::timeout(duration() + Duration::from_secs(120), all).await;
    for client in ended.expect("a client waits for ever") {
        client.unwrap();
    }
    let (answered, refused) = (
        tally.answered.load(Ordering::Relaxed),
        tally.refused.load(Ordering::Relaxed),
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.0.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().split(' ').next().unwrap().parse().unwrap();
    println!(
        "{answered} answers, {refused} of them refusals, peak {} MiB",
        peak >> 10
    );
    assert!(answered > CLIENTS, "{answered}");
    assert!(peak >> 10 < MEMORY, "{peak} KiB");
}

/// An image, an overlay, looks at both, refusals, deletion.
async fn http(client: &Client, url: &str, name: &str, tally: &Tally) {
    let send = async |request: reqwest::RequestBuilder| -> Value {
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(!status.is_server_error(), "{status}: {text}");
        tally.answered.fetch_add(1, Ordering::Relaxed);
        tally
            .refused
            .fetch_add(u64::from(status.is_client_error()), Ordering::Relaxed);
        serde_json::from_str(&text).unwrap_or(Value::Null)
    };
    let body = json!({"name": name, "format": "qcow2", "virtual_size": 1_048_576});
    let image = send(client.post(format!("{url}/v1/images")).json(&body)).await;
    let id = image["id"].as_str().unwrap().to_owned();
    let body = json!({"name": format!("{name}-top"), "format": "qcow2", "backing": id});
    let overlay = send(client.post(format!("{url}/v1/images")).json(&body)).await;
    for path in ["info", "map", "chain", "dependents", "data"] {
        send(client.get(format!("{url}/v1/images/{id}/{path}"))).await;
    }
    send(client.post(format!("{url}/v1/images")).json(&body)).await;
    send(client.delete(format!("{url}/v1/images/{id}"))).await;
    send(client.get(format!("{url}/v1/images?page_size=5"))).await;
    let overlay = overlay["id"].as_str().unwrap();
    send(client.delete(format!("{url}/v1/images/{overlay}"))).await;
    send(client.delete(format!("{url}/v1/images/{id}"))).await;
}

async fn grpc(channel: Channel, name: &str, tally: &Tally) {
    let mut images = ImageServiceClient::new(channel);
    let made = images.create_image(CreateImageRequest {
        name: name.to_owned(),
        format: "raw".to_owned(),
        virtual_size: Some(1 << 20),
        ..Default::default()
    });
    let made = made.await.unwrap().into_inner();
    images.list_images(ListImagesRequest::default()).await.unwrap();
    images
        .delete_image(DeleteImageRequest { id: made.id.clone() })
        .await
        .unwrap();
    let gone = images
        .delete_image(DeleteImageRequest { id: made.id })
        .await
        .unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound, "{gone}");
    tally.answered.fetch_add(4, Ordering::Relaxed);
    tally.refused.fetch_add(1, Ordering::Relaxed);
}
