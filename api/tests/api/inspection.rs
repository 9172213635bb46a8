//! The look at files of unknown origin, in a child process as vdiskd does it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use reqwest::StatusCode;
use serde_json::{Value, json};
use vdisk_api::proto;
use vdisk_api::proto::image_service_client::ImageServiceClient;

use crate::server::Server;

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_vdiskd").into()
}

async fn sandboxed() -> Server {
    Server::start_with(|config| config.inspector = Some(program())).await
}

#[test]
fn the_child_can_open_reach_and_start_nothing() {
    let output = Command::new(program())
        .args(["inspect-child", "probe"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let found = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{found} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    if found.contains("seccomp=false") {
        // Such a kernel leaves the resource limits, which bound memory and processes.
        eprintln!("this kernel offers no seccomp: {found}");
        assert!(!found.contains("memory"), "{found}");
        return;
    }
    assert!(found.ends_with("possible=\n"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_are_parsed_in_a_child() {
    let server = sandboxed().await;
    let image = server.create("made", json!({"virtual_size": 1_048_576})).await;
    let bytes = server
        .get(&format!("/v1/images/{image}/file"))
        .await
        .expect(StatusCode::OK)
        .bytes;
    let copy = server.upload("copy", "qcow2", bytes.clone()).await;
    let report = server
        .get(&format!("/v1/images/{copy}/inspection"))
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (&report["verdict"], &report["format"]),
        (&json!("accepted"), &json!("qcow2")),
        "{report}"
    );
    assert_eq!(report["parsed_in"]["child"], true);
    assert_eq!(report["virtual_size"], 1_048_576);
    assert_eq!(report["file_size"], bytes.len());

    let channel = tonic::transport::Channel::from_shared(server.url.clone()).unwrap();
    let mut images = ImageServiceClient::new(channel.connect().await.unwrap());
    let same = images
        .inspect_image(proto::InspectImageRequest { id: copy })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (same.verdict(), same.virtual_size),
        (proto::Verdict::Accepted, Some(1_048_576))
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_speaks_against_a_file_is_said_and_it_is_gone() {
    let server = sandboxed().await;
    let image = server.create("made", json!({"virtual_size": 1_048_576})).await;
    let good = server.get(&format!("/v1/images/{image}/file")).await.bytes;
    let mut overlay = good.clone();
    overlay[8..16].copy_from_slice(&512_u64.to_be_bytes());
    overlay[16..20].copy_from_slice(&11_u32.to_be_bytes());
    overlay[512..523].copy_from_slice(b"/etc/passwd");
    let mut short = good.clone();
    short.truncate(70_000);
    let cases: [(&str, &str, Vec<u8>, &str); 4] = [
        ("mismatch", "vmdk", good.clone(), "format_mismatch"),
        ("as-raw", "raw", good.clone(), "format_mismatch"),
        ("overlay", "qcow2", overlay, "denied"),
        ("short", "qcow2", short, "corrupt_image"),
    ];
    for (name, format, bytes, code) in cases {
        let id = server.import(name, format).await;
        let answer = server.put(&format!("/v1/images/{id}/file"), &[], bytes).await;
        assert_eq!(answer.body["code"], code, "{name}: {answer:?}");
        let record = server.get(&format!("/v1/images/{id}")).await.body;
        assert_eq!(record["state"], "failed", "{name}");
        server
            .get(&format!("/v1/images/{id}/inspection"))
            .await
            .problem(409, "image_not_ready");
    }
    server.stop().await;
}

/// A server that sends the file of an image, and the import of that by another one.
async fn fetched(server: &Server, target: Option<&str>) -> Value {
    let origin = Server::start().await;
    let image = origin.create("made", json!({"virtual_size": 1_048_576})).await;
    let url = format!("{}/v1/images/{image}/file", origin.url);
    let import = json!({"name": format!("fetched-{}", target.unwrap_or("as-it-is")), "format": "qcow2",
        "source": {"url": url}, "target_format": target});
    let job = server.ended(server.post("/v1/images/import", import).await).await;
    origin.stop().await;
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_url_gives_is_parsed_in_a_child() {
    let change = |inspector: PathBuf| {
        move |config: &mut vdisk_api::vdisk_service::ServiceConfig| {
            config.inspector = Some(inspector);
            config.import_from_private = true;
        }
    };
    let server = Server::start_with(change(program())).await;
    for (target, format) in [(None, "qcow2"), (Some("qcow2"), "qcow2"), (Some("raw"), "raw")] {
        let job = fetched(&server, target).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        assert_eq!(
            (&job["result"]["format"], &job["result"]["virtual_size"]),
            (&json!(format), &json!(1_048_576))
        );
        if target == Some("qcow2") {
            let image = job["result"]["image_id"].as_str().unwrap();
            server
                .delete(&format!("/v1/images/{image}"))
                .await
                .expect(StatusCode::NO_CONTENT);
        }
    }
    server.stop().await;
    // A child that does nothing but die: whatever succeeds was parsed elsewhere.
    let server = Server::start_with(change("/bin/false".into())).await;
    for target in [None, Some("raw"), Some("vmdk")] {
        let job = fetched(&server, target).await;
        assert_eq!(
            (&job["state"], &job["error"]["code"]),
            (&json!("failed"), &json!("inspection_failed")),
            "{job}"
        );
    }
    let left = std::fs::read_dir(server.dir.path().join("data/pools/default"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "files of imports that failed");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_dies_fails_the_import_and_nothing_else() {
    let server = Server::start_with(|config| config.inspector = Some("/bin/false".into())).await;
    let id = server.import("disk", "raw").await;
    let answer = server.put(&format!("/v1/images/{id}/file"), &[], vec![7; 4096]).await;
    answer.problem(422, "inspection_failed");
    std::fs::write(server.dir.path().join("data/pools/default/found.raw"), [7; 4096]).unwrap();
    let import = json!({"name": "found", "format": "raw", "source": {"pool_file": "found.raw"}});
    let job = server.ended(server.post("/v1/images/import", import).await).await;
    assert_eq!(
        (&job["state"], &job["error"]["code"]),
        (&json!("failed"), &json!("inspection_failed")),
        "{job}"
    );
    let scan = server
        .ended(server.post("/v1/pools/default/scan", json!({})).await)
        .await;
    assert_eq!(
        (&scan["state"], &scan["result"]["skipped"][0]["code"]),
        (&json!("succeeded"), &json!("inspection_failed"))
    );
    server.get("/readyz").await.expect(StatusCode::OK);
    server.stop().await;
}

/// The guest of a raw image writes a qcow2 header that names a file of the host.
#[tokio::test(flavor = "multi_thread")]
async fn a_raw_image_stays_raw_in_every_verb() {
    let server = sandboxed().await;
    let mut evil = server
        .get(&format!(
            "/v1/images/{}/file",
            server.create("made", json!({"virtual_size": 1_048_576})).await
        ))
        .await
        .bytes;
    evil[8..16].copy_from_slice(&512_u64.to_be_bytes());
    evil[16..20].copy_from_slice(&11_u32.to_be_bytes());
    evil[512..523].copy_from_slice(b"/etc/passwd");
    evil.resize(evil.len().next_multiple_of(512), 0);
    let size = evil.len();
    let raw = server.upload("raw", "raw", vec![0; size]).await;
    let file = std::fs::read_dir(server.dir.path().join("data/pools/default")).unwrap();
    let file = file
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_str().unwrap().contains(&raw))
        .unwrap();
    std::fs::write(&file, &evil).unwrap();

    let get = async |path: &str| {
        server
            .get(&format!("/v1/images/{raw}/{path}"))
            .await
            .expect(StatusCode::OK)
    };
    let info = get("info").await.body;
    assert_eq!((&info["format"], &info["virtual-size"]), (&json!("raw"), &json!(size)));
    assert_eq!(get("data").await.bytes, evil);
    assert_eq!(get("chain").await.body["layers"].as_array().unwrap().len(), 1);
    assert_eq!(get("map").await.body["extents"][0]["depth"], 0);
    let report = get("inspection").await.body;
    assert_eq!(
        (&report["format"], &report["verdict"]),
        (&json!("raw"), &json!("accepted")),
        "{report}"
    );
    assert_eq!(report["findings"][0]["code"], "content");
    for (verb, body) in [
        ("convert", json!({"name": "copy", "format": "qcow2"})),
        ("check", json!({})),
        ("compare", json!({"other": raw})),
        ("resize", json!({"virtual_size": size + 512})),
    ] {
        let answer = server.post(&format!("/v1/images/{raw}/{verb}"), body).await;
        if answer.status != StatusCode::ACCEPTED {
            assert!(
                ["unsupported", "invalid_argument"].contains(&answer.body["code"].as_str().unwrap()),
                "{verb}: {answer:?}"
            );
            continue;
        }
        let job = server.ended(answer).await;
        let code = job["error"]["code"].as_str().unwrap_or("none");
        assert!(job["state"] == "succeeded" || code == "unsupported", "{verb}: {job}");
        if let Some(copy) = job["result"]["image_id"].as_str().filter(|id| *id != raw) {
            let data = server.get(&format!("/v1/images/{copy}/data")).await.bytes;
            assert!(data == evil, "the copy holds the guest's bytes");
        }
    }
    server.stop().await;
}
