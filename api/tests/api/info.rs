//! What `/info` says, held against what `qemu-img info` says of the same file.

use std::collections::BTreeSet;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::server::Server;

/// Every key with the keys on the way to it; the items of a list count as one.
fn keys(value: &Value) -> BTreeSet<String> {
    fn gather(path: &str, value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let path = format!("{path}/{key}");
                    gather(&path, value, found);
                    found.insert(path);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| gather(path, item, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    gather("", value, &mut found);
    found
}

/// The images to hold against the peer: one a format that both know, and one with all that an image can have around it.
async fn images(server: &Server) -> Vec<(String, String)> {
    let help = e2e::tools::ok("qemu-img", &["--help"]);
    let known: BTreeSet<&str> = help.split_once("formats:").unwrap().1.split_whitespace().collect();
    let secret = json!({"name": "key", "value": "a passphrase"});
    let secret = server
        .post("/v1/secrets", secret)
        .await
        .expect(StatusCode::CREATED)
        .id();
    let formats = server.get("/v1/formats").await.expect(StatusCode::OK).body;
    let mut images = Vec::new();
    for format in formats["items"].as_array().unwrap() {
        let name = format["name"].as_str().unwrap();
        if !format["capabilities"].as_array().unwrap().contains(&json!("create")) || !known.contains(name) {
            continue;
        }
        let mut more = json!({"format": name, "virtual_size": 1 << 20});
        if name == "luks" {
            more["options"] = json!({"key-secret": "k", "iter-time": "10"});
            more["secrets"] = json!({"k": secret});
        }
        images.push((name.to_owned(), server.create(name, more).await));
    }
    let (_, base) = images.iter().find(|(name, _)| name == "qcow2").unwrap();
    let overlay = server.create("overlay", json!({"backing": base})).await;
    let taken = server
        .post(&format!("/v1/images/{overlay}/snapshots"), json!({"name": "s"}))
        .await;
    assert!(taken.status.is_success(), "{taken:?}");
    images.push(("qcow2".to_owned(), overlay));
    images
}

#[tokio::test(flavor = "multi_thread")]
async fn info_has_the_keys_that_qemu_img_has() {
    if !e2e::tools::have(&["qemu-img"]) {
        return;
    }
    let server = Server::start().await;
    let images = images(&server).await;
    assert!(images.len() > 8, "{images:?}");
    for (format, id) in images {
        let ours = server
            .get(&format!("/v1/images/{id}/info"))
            .await
            .expect(StatusCode::OK)
            .body;
        let file = server.dir.path().join("data/pools/default").join(&id);
        let args = ["info", "--output=json", "-f", &format, e2e::tools::arg(&file)];
        let theirs: Value = serde_json::from_str(&e2e::tools::ok("qemu-img", &args)).unwrap();
        assert_eq!(keys(&ours), keys(&theirs), "{format}");
        let (child, peer) = (&ours["children"][0], &theirs["children"][0]);
        assert_eq!(child["name"], peer["name"], "{format}");
        for key in ["virtual-size", "format", "format-specific"] {
            assert_eq!(child["info"][key], peer["info"][key], "{format}: {key}");
        }
        assert_eq!(child["info"]["filename"], json!(id), "a name inside the pool");
    }
}
