//! Names: what is none, and what is taken.

use serde_json::json;

use crate::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn names_are_plain_and_short() {
    let server = Server::start().await;
    let long = "a".repeat(300);
    let bad = [
        "",
        "a/b",
        "../up",
        ".hidden",
        "..",
        "-rf",
        "a b",
        "nul\u{0}",
        "tab\t",
        &long,
        "диск",
        "磁盘",
        "a\u{202e}b",
        "é",
    ];
    for name in bad {
        let body = json!({"name": name, "format": "raw", "virtual_size": 1_048_576});
        let answer = server.post("/v1/images", body).await;
        answer.problem(422, "invalid_name");
        let body = json!({"name": name, "format": "raw", "source": {"upload": true}});
        server
            .post("/v1/images/import", body)
            .await
            .problem(422, "invalid_name");
        server
            .post("/v1/secrets", json!({"name": name, "value": "x"}))
            .await
            .problem(422, "invalid_name");
    }
    assert_eq!(server.get("/v1/images").await.body["items"], json!([]));
    let longest = "a".repeat(128);
    server.create(&longest, json!({"virtual_size": 1_048_576})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_once() {
    let server = Server::start().await;
    server.create("disk", json!({"virtual_size": 1_048_576})).await;
    let body = json!({"name": "disk", "format": "raw", "virtual_size": 1_048_576});
    server.post("/v1/images", body).await.problem(409, "name_taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_pool_are_named_without_folders() {
    let server = Server::start().await;
    for file in ["../secret", "/etc/passwd", "a/../../b", "nul\u{0}", ""] {
        let body = json!({"name": "taken-in", "format": "raw", "source": {"pool_file": file}});
        let answer = server.post("/v1/images/import", body).await;
        assert!(answer.status.is_client_error(), "{file:?}: {answer:?}");
        assert!(!answer.body.to_string().contains("root:"), "{answer:?}");
    }
}
