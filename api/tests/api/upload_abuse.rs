//! Uploads that are not what they claim, and clients that misbehave.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::server::Server;

/// A real qcow2 file of our own making.
async fn qcow2(server: &Server) -> Vec<u8> {
    let id = server.create("template", json!({"virtual_size": 1 << 20})).await;
    server
        .get(&format!("/v1/images/{id}/file"))
        .await
        .expect(StatusCode::OK)
        .bytes
}

fn be32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn be64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// Offsets are those of QEMU's docs/interop/qcow2, section Header.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_images_are_refused_with_a_reason() {
    let server = Server::start().await;
    let good = qcow2(&server).await;
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let name_outside = |bytes: &mut Vec<u8>| {
        let name = b"/etc/passwd";
        let at = 512;
        be64(bytes, 8, at as u64);
        be32(bytes, 16, u32::try_from(name.len()).unwrap());
        bytes[at..at + name.len()].copy_from_slice(name);
    };
    let cases: [(&str, Vec<u8>, &[&str]); 7] = [
        ("truncated", good[..100].to_vec(), &["corrupt_image", "format_mismatch"]),
        ("empty", Vec::new(), &["corrupt_image", "format_mismatch"]),
        ("wrong-magic", vec![0x5a; 4096], &["format_mismatch"]),
        (
            "oversized",
            changed(&|bytes| be64(bytes, 24, 1 << 62)),
            &["corrupt_image", "limit_exceeded", "unsupported"],
        ),
        (
            "unknown-feature",
            changed(&|bytes| be64(bytes, 72, 1 << 40)),
            &["unsupported"],
        ),
        (
            "tables-outside",
            changed(&|bytes| be64(bytes, 40, 1 << 50)),
            &["corrupt_image"],
        ),
        ("names-a-file", changed(&name_outside), &["denied"]),
    ];
    for (name, bytes, codes) in cases {
        let id = server.import(name, "qcow2").await;
        let answer = server.put(&format!("/v1/images/{id}/file"), &[], bytes).await;
        let code = answer.body["code"].as_str().unwrap_or("none").to_owned();
        assert!(codes.contains(&code.as_str()), "{name}: {answer:?}");
        answer.problem(if code == "denied" { 403 } else { 422 }, &code);
        let image = server.get(&format!("/v1/images/{id}")).await.body;
        assert_eq!(image["state"], "failed", "{name}: {image}");
        assert!(
            image["problem"].as_str().is_some_and(|text| !text.is_empty()),
            "{name}: {image}"
        );
        server
            .delete(&format!("/v1/images/{id}"))
            .await
            .expect(StatusCode::NO_CONTENT);
    }
    assert_eq!(server.get("/v1/pools/default").await.body["image_count"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_before_a_client_hung_up_is_kept() {
    let server = Server::start().await;
    let id = server.import("disk", "raw").await;
    let path = format!("/v1/images/{id}/file");
    let address = server.url.strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!("PUT {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1000000\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&[9; 200_000]).await.unwrap();
    socket.flush().await.unwrap();
    drop(socket);
    let received = async || server.put(&path, &[("content-range", "bytes */1000000")], "").await;
    for _ in 0..2000 {
        if received().await.body["received_bytes"].as_u64() == Some(200_000) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(received().await.body["received_bytes"], 200_000);
    let rest = server
        .put(
            &path,
            &[("content-range", "bytes 200000-999999/1000000")],
            vec![9; 800_000],
        )
        .await;
    rest.expect(StatusCode::OK);
    assert!(server.get(&path).await.bytes.iter().all(|byte| *byte == 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_uploads_of_one_image_do_not_mix() {
    let server = Server::start().await;
    let id = server.import("disk", "raw").await;
    let path = format!("/v1/images/{id}/file");
    let address = server.url.strip_prefix("http://").unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    let head = format!("PUT {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 8192\r\n\r\n");
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(&[1; 4096]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.put(&path, &[], vec![2; 8192]).await.problem(409, "image_busy");
    slow.write_all(&[1; 4096]).await.unwrap();
    for _ in 0..2000 {
        if server.get(&format!("/v1/images/{id}")).await.body["state"] == "ready" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.get(&path).await.expect(StatusCode::OK).bytes, vec![1; 8192]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_contradict_each_other_are_refused() {
    let server = Server::start().await;
    let id = server.import("disk", "raw").await;
    let path = format!("/v1/images/{id}/file");
    server
        .put(&path, &[("content-range", "bytes 0-99/100")], "short")
        .await
        .problem(422, "invalid_argument");
    server
        .put(&path, &[("content-range", "bytes 9-1/100")], "")
        .await
        .problem(400, "malformed_request");
    server
        .put(&path, &[("content-range", "nonsense")], "")
        .await
        .problem(400, "malformed_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_larger_than_allowed_are_refused() {
    let server = Server::start_with(|config| config.limits.upload_bytes = 1000).await;
    let id = server.import("disk", "raw").await;
    server
        .put(&format!("/v1/images/{id}/file"), &[], vec![1; 1001])
        .await
        .problem(422, "limit_exceeded");
}
