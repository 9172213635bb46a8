//! A disk that fills up, on a tmpfs of 8 MiB.

use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::StatusCode;
use serde_json::json;

use crate::server::Server;

/// A small file system, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
            .arg(at)
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(at.to_owned()));
        }
        e2e::skip("a tmpfs cannot be mounted here");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_job_and_gets_its_space_back() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&place.path().join("small")) else {
        return;
    };
    let server = Server::start_with(|config| {
        config.pools = [
            ("default".to_owned(), config.data_dir.join("pool")),
            ("small".to_owned(), disk.0.clone()),
        ]
        .into();
    })
    .await;
    let before = server.get("/v1/pools/small").await.body["free"].as_u64().unwrap();
    let source = server.upload("source", "raw", vec![7; 16 << 20]).await;
    let body = json!({"name": "copy", "format": "raw", "pool": "small"});
    let queued = server.post(&format!("/v1/images/{source}/convert"), body).await;
    if queued.status == StatusCode::ACCEPTED {
        let job = server.ended(queued).await;
        assert_eq!(
            (&job["state"], &job["error"]["code"]),
            (&json!("failed"), &json!("insufficient_storage")),
            "{job}"
        );
    } else {
        queued.problem(507, "insufficient_storage");
    }
    let pool = server.get("/v1/pools/small").await.body;
    assert_eq!(
        (&pool["image_count"], pool["free"].as_u64().unwrap()),
        (&json!(0), before)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_an_upload() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&place.path().join("small")) else {
        return;
    };
    let server = Server::start_with(|config| config.pools = [("default".to_owned(), disk.0.clone())].into()).await;
    let id = server.import("disk", "raw").await;
    server
        .put(&format!("/v1/images/{id}/file"), &[], vec![7; 16 << 20])
        .await
        .problem(507, "insufficient_storage");
    server
        .delete(&format!("/v1/images/{id}"))
        .await
        .expect(StatusCode::NO_CONTENT);
    server.get("/readyz").await.expect(StatusCode::OK);
}
