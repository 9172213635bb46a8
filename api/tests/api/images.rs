//! Images: what protects bases, what a retry does, how lists page.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use vdisk_api::http::document;

use crate::server::{Answer, Server};

const SIZE: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_image_is_located_and_described() {
    let server = Server::start().await;
    let body = json!({"name": "disk", "format": "qcow2", "virtual_size": SIZE, "labels": {"team": "web"}});
    let made = server.post("/v1/images", body).await.expect(StatusCode::CREATED);
    assert_eq!(made.header("location"), format!("/v1/images/{}", made.id()));
    let image = server.get(made.header("location")).await.expect(StatusCode::OK).body;
    assert_eq!(image, made.body);
    for (key, value) in [
        ("format", json!("qcow2")),
        ("state", json!("ready")),
        ("virtual_size", json!(SIZE)),
    ] {
        assert_eq!(image[key], value, "{key}");
    }
    assert!(image.get("upload_url").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_with_overlays_stays_and_says_who_needs_it() {
    let server = Server::start().await;
    let base = server.create("base", json!({"virtual_size": SIZE})).await;
    let overlay = server.create("overlay", json!({"backing": base})).await;
    let refused = server.delete(&format!("/v1/images/{base}")).await;
    refused.problem(409, "conflict_dependents");
    assert_eq!(refused.body["dependents"], json!([overlay]));
    let dependents = server.get(&format!("/v1/images/{base}/dependents")).await.body;
    assert_eq!(dependents["items"][0]["id"], json!(overlay));
    let resize = server
        .post(&format!("/v1/images/{base}/resize"), json!({"virtual_size": 2 * SIZE}))
        .await;
    resize.problem(409, "conflict_dependents");
    server
        .delete(&format!("/v1/images/{overlay}"))
        .await
        .expect(StatusCode::NO_CONTENT);
    server
        .delete(&format!("/v1/images/{base}"))
        .await
        .expect(StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_cannot_contain_itself() {
    let server = Server::start().await;
    let base = server.create("base", json!({"virtual_size": SIZE})).await;
    let overlay = server.create("overlay", json!({"backing": base})).await;
    for (id, backing) in [(&base, &overlay), (&overlay, &overlay)] {
        let answer = server
            .post(&format!("/v1/images/{id}/rebase"), json!({"backing": backing}))
            .await;
        answer.problem(409, "conflict_cycle");
    }
    let chain = server.get(&format!("/v1/images/{overlay}/chain")).await.body;
    let names: Vec<_> = chain["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["name"].clone())
        .collect();
    assert_eq!(names, ["overlay", "base"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_post_gets_the_first_answer() {
    let server = Server::start().await;
    let post = async |key: &str, name: &str| {
        let body = json!({"name": name, "format": "qcow2", "virtual_size": SIZE});
        let request = server
            .request(Method::POST, "/v1/images")
            .header("idempotency-key", key)
            .json(&body);
        Answer::of(request.send().await.unwrap()).await
    };
    let first = post("key-1", "disk").await.expect(StatusCode::CREATED);
    assert_eq!(post("key-1", "disk").await.expect(StatusCode::CREATED).id(), first.id());
    post("key-1", "other").await.problem(409, "idempotency_conflict");
    post(&"k".repeat(256), "third").await.problem(422, "invalid_argument");
    assert_eq!(
        server.get("/v1/images").await.body["items"].as_array().unwrap().len(),
        1
    );
}

/// The answer shows what the first request made, which is not made a second time.
#[tokio::test(flavor = "multi_thread")]
async fn a_retried_post_finds_what_was_deleted_since_no_more() {
    let server = Server::start().await;
    let document: Value = serde_json::from_str(document::json()).unwrap();
    for (place, body) in [
        (
            "/v1/images",
            json!({"name": "disk", "format": "raw", "virtual_size": SIZE}),
        ),
        ("/v1/secrets", json!({"name": "key", "value": "geheim"})),
        ("/v1/tokens", json!({"name": "ci", "role": "reader"})),
        (
            "/v1/webhooks",
            json!({"url": "https://hooks.example/", "secret": "0123456789abcdef"}),
        ),
    ] {
        let post = async || {
            let request = server.request(Method::POST, place).header("idempotency-key", place);
            Answer::of(request.json(&body).send().await.unwrap()).await
        };
        let made = post().await.expect(StatusCode::CREATED);
        server
            .delete(made.header("location"))
            .await
            .expect(StatusCode::NO_CONTENT);
        post().await.problem(404, "not_found");
        let responses = &document["paths"][place]["post"]["responses"];
        assert!(responses["404"].is_object(), "{place}: {responses}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_page_to_the_end() {
    let server = Server::start().await;
    for n in 0..5 {
        server.create(&format!("disk-{n}"), json!({"virtual_size": SIZE})).await;
    }
    let (mut names, mut query) = (Vec::new(), "?page_size=2".to_owned());
    loop {
        let page = server
            .get(&format!("/v1/images{query}"))
            .await
            .expect(StatusCode::OK)
            .body;
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|image| image["name"].as_str().unwrap().to_owned()),
        );
        let Some(token) = page["next_page_token"].as_str() else {
            break;
        };
        query = format!("?page_size=2&page_token={token}");
    }
    assert_eq!(names, ["disk-0", "disk-1", "disk-2", "disk-3", "disk-4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn protection_is_lifted_by_a_patch() {
    let server = Server::start().await;
    let id = server.create("disk", json!({"virtual_size": SIZE})).await;
    let path = format!("/v1/images/{id}");
    server
        .patch(&path, json!({"protected": true, "labels": {"a": "b"}}))
        .await
        .expect(StatusCode::OK);
    server.delete(&path).await.problem(409, "image_protected");
    let image = server
        .patch(&path, json!({"protected": false}))
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(image["labels"], json!({"a": "b"}));
    server.delete(&path).await.expect(StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_that_changes_nothing_is_no_change() {
    let server = Server::start_with(|config| config.workers = 0).await;
    let id = server
        .create("disk", json!({"virtual_size": 1 << 20, "labels": {"a": "b"}}))
        .await;
    let image = format!("/v1/images/{id}");
    let before = server.get(&image).await.body;
    for same in [
        json!({}),
        json!({"name": "disk", "labels": {"a": "b"}, "protected": false}),
    ] {
        let after = server.patch(&image, same).await.expect(StatusCode::OK).body;
        assert_eq!(after["updated_at"], before["updated_at"]);
    }
    let queued = server.post(&format!("{image}/check"), json!({})).await.body;
    let job = format!("/v1/jobs/{}", queued["id"].as_str().unwrap());
    for same in [
        json!({}),
        json!({"rate_limit": null}),
        json!({"rate_limit": 0, "priority": 0}),
    ] {
        let after = server.patch(&job, same).await.expect(StatusCode::OK).body;
        assert_eq!(after["version"], queued["version"]);
    }
    let changed = server.patch(&job, json!({"priority": 1})).await.body;
    assert_ne!(changed["version"], queued["version"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_never_shown() {
    let server = Server::start().await;
    let made = server
        .post("/v1/secrets", json!({"name": "key", "value": "canary-7f3a"}))
        .await
        .expect(StatusCode::CREATED);
    let shown = [
        made.bytes.clone(),
        server.get("/v1/secrets").await.bytes,
        server.get(made.header("location")).await.bytes,
    ];
    for bytes in shown {
        assert!(
            !String::from_utf8_lossy(&bytes).contains("canary"),
            "{}",
            String::from_utf8_lossy(&bytes)
        );
    }
    server
        .delete(made.header("location"))
        .await
        .expect(StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_taken_and_applied() {
    let server = Server::start().await;
    let id = server.create("disk", json!({"virtual_size": SIZE})).await;
    let path = format!("/v1/images/{id}/snapshots");
    let made = server
        .post(&path, json!({"name": "before"}))
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(
        server.get(made.header("location")).await.expect(StatusCode::OK).body["name"],
        "before"
    );
    server
        .post(&path, json!({"name": "before"}))
        .await
        .problem(409, "name_taken");
    server
        .post(&format!("{path}/before/apply"), json!({}))
        .await
        .expect(StatusCode::OK);
    server
        .delete(&format!("{path}/before"))
        .await
        .expect(StatusCode::NO_CONTENT);
    server.get(&format!("{path}/before")).await.problem(404, "not_found");
}
