//! A disk that fills up, on a tmpfs of 8 MiB.

use e2e::small_disk::SmallDisk;
use reqwest::StatusCode;
use serde_json::json;

use crate::server::Server;

/// A server with the disk as its pool `small`, beside one with room.
async fn with_a_small_pool(disk: &SmallDisk) -> Server {
    Server::start_with(|config| {
        config.pools = [
            ("default".to_owned(), config.data_dir.join("pool")),
            ("small".to_owned(), disk.path().to_owned()),
        ]
        .into();
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_job_and_gets_its_space_back() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&place.path().join("small"), 8) else {
        return;
    };
    let server = with_a_small_pool(&disk).await;
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
    let Some(disk) = SmallDisk::mount(&place.path().join("small"), 8) else {
        return;
    };
    let server =
        Server::start_with(|config| config.pools = [("default".to_owned(), disk.path().to_owned())].into()).await;
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

/// Work in place: refused before it writes where it is known not to fit, taken back where that comes out on the way.
#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_that_does_not_fit_stays_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&place.path().join("small"), 8) else {
        return;
    };
    let server =
        Server::start_with(|config| config.pools = [("default".to_owned(), disk.path().to_owned())].into()).await;
    let size = 5 << 20;
    let base = server.upload("base", "raw", vec![7; size]).await;
    let empty = server
        .create("empty", json!({"format": "raw", "virtual_size": size}))
        .await;
    let overlay = server
        .create("overlay", json!({"format": "qcow2", "backing": base}))
        .await;
    let free = async || server.get("/v1/pools/default").await.body["free"].as_u64().unwrap();
    let before = (
        free().await,
        server.get(&format!("/v1/images/{overlay}")).await.body["allocated_size"].clone(),
    );
    let requests = [
        ("flatten", json!({})),
        ("rebase", json!({"backing": null})),
        ("rebase", json!({"backing": empty})),
    ];
    for (verb, request) in requests {
        let queued = server
            .post(&format!("/v1/images/{overlay}/{verb}"), request.clone())
            .await;
        let job = server.ended(queued).await;
        assert_eq!(
            (&job["state"], &job["error"]["code"]),
            (&json!("failed"), &json!("insufficient_storage")),
            "{verb} {request}: {job}"
        );
        let image = server.get(&format!("/v1/images/{overlay}")).await.body;
        assert_eq!(
            (free().await, image["allocated_size"].clone()),
            before,
            "{verb} {request}"
        );
        assert_eq!(image["backing_id"], json!(base), "{verb} {request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_would_not_fit_leaves_the_base_alone() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&place.path().join("small"), 8) else {
        return;
    };
    let server = with_a_small_pool(&disk).await;
    let size = 5 << 20;
    let source = server.upload("source", "raw", vec![7; size]).await;
    let small = json!({"pool": "small", "format": "qcow2", "virtual_size": size});
    let base = server.create("base", small).await;
    let overlay = json!({"name": "overlay", "pool": "small", "format": "qcow2", "backing": base});
    let made = server.post(&format!("/v1/images/{source}/convert"), overlay).await;
    let made = server.ended(made).await;
    let overlay = made["result"]["image_id"].as_str().unwrap().to_owned();
    let look = async || server.get(&format!("/v1/images/{base}")).await.body["generation"].clone();
    let before = look().await;
    let queued = server
        .post(&format!("/v1/images/{overlay}/commit"), json!({"drop": true}))
        .await;
    let job = server.ended(queued).await;
    assert_eq!(job["error"]["code"], json!("insufficient_storage"), "{job}");
    assert_eq!(look().await, before, "nothing was written to it");
}
