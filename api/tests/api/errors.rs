//! Requests that cannot be read: not JSON, too large, of the wrong type, to no path.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::server::{Answer, Server};

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_problems() {
    let server = Server::start().await;
    server.get("/v1/nothing").await.problem(404, "no_such_path");
    server
        .get("/v1/images/../../etc/passwd")
        .await
        .problem(404, "no_such_path");
    let answer = server.delete("/v1/images").await;
    answer.problem(405, "method_not_allowed");
    assert!(answer.header("allow").contains("GET"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_not_what_is_read_name_what_is_wrong() {
    let server = Server::start().await;
    let cases: [(&str, &str, u16, &str, Option<&str>); 9] = [
        ("application/json", "not json", 400, "malformed_body", None),
        ("application/json", "", 400, "malformed_body", None),
        ("application/json", "{\"name\": \"a\"", 400, "malformed_body", None),
        ("application/json", "\u{0}", 400, "malformed_body", None),
        ("text/plain", "{}", 415, "unsupported_media_type", None),
        (
            "application/json",
            r#"{"name": 5, "format": "raw"}"#,
            422,
            "invalid_argument",
            Some("name"),
        ),
        (
            "application/json",
            r#"{"name": "a", "format": "raw", "size": 5}"#,
            422,
            "invalid_argument",
            Some("size"),
        ),
        (
            "application/json",
            r#"{"name": "a"}"#,
            422,
            "invalid_argument",
            Some("format"),
        ),
        (
            "application/json",
            r#"{"name": "a", "format": "raw", "options": {"x": []}}"#,
            422,
            "invalid_argument",
            Some("options.x"),
        ),
    ];
    for (kind, body, status, code, field) in cases {
        let request = server
            .request(Method::POST, "/v1/images")
            .header("content-type", kind)
            .body(body);
        let answer = Answer::of(request.send().await.unwrap()).await;
        answer.problem(status, code);
        assert_eq!(answer.body["field"].as_str(), field, "{body}: {answer:?}");
    }
    assert_eq!(server.get("/v1/images").await.body["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn json_bodies_over_a_mebibyte_are_refused() {
    let server = Server::start().await;
    let body = json!({"name": "a".repeat(2 << 20), "format": "raw"});
    server.post("/v1/images", body).await.problem(413, "body_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_read_strictly() {
    let server = Server::start().await;
    for query in [
        "page_size=many",
        "page_size=-1",
        "colour=red",
        "state=happy",
        "backing=7",
        "page_token=%00",
    ] {
        let answer = server.get(&format!("/v1/images?{query}")).await;
        answer.problem(422, "invalid_argument");
    }
    server.get("/v1/jobs?kind=magic").await.problem(422, "invalid_argument");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_malformed_ids_are_not_found() {
    let server = Server::start().await;
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    for id in [unknown, "7", "..", "%2e%2e%2fetc", "%00", "a%20b", &"a".repeat(300)] {
        for path in [
            "",
            "/info",
            "/chain",
            "/map",
            "/file",
            "/data",
            "/dependents",
            "/snapshots",
        ] {
            let answer = server.get(&format!("/v1/images/{id}{path}")).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{id}{path}: {answer:?}");
            assert!(answer.body["code"].is_string(), "{id}{path}: {answer:?}");
        }
    }
    server
        .get(&format!("/v1/images/{unknown}"))
        .await
        .problem(404, "not_found");
    server
        .get(&format!("/v1/jobs/{unknown}"))
        .await
        .problem(404, "not_found");
    server
        .get(&format!("/v1/jobs/{unknown}/events"))
        .await
        .problem(404, "not_found");
    server
        .post(&format!("/v1/jobs/{unknown}/cancel"), json!({}))
        .await
        .problem(404, "not_found");
    server
        .get(&format!("/v1/secrets/{unknown}"))
        .await
        .problem(404, "not_found");
    server.get("/v1/pools/nowhere").await.problem(404, "not_found");
    server
        .delete(&format!("/v1/images/{unknown}"))
        .await
        .problem(404, "not_found");
    server
        .patch(&format!("/v1/images/{unknown}"), json!({}))
        .await
        .problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_are_not_utf_8_are_refused() {
    let server = Server::start().await;
    server.get("/v1/pools/%ff%fe").await.problem(400, "malformed_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_other_sites_are_refused() {
    let server = Server::start().await;
    let request = server
        .request(Method::POST, "/v1/pools/default/scan")
        .header("origin", "https://evil.example");
    Answer::of(request.send().await.unwrap())
        .await
        .problem(403, "cross_origin");
    assert_eq!(server.get("/v1/jobs").await.body["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_keeps_its_id() {
    let server = Server::start().await;
    let request = server.request(Method::GET, "/healthz").header("x-request-id", "mine-7");
    assert_eq!(
        Answer::of(request.send().await.unwrap()).await.header("x-request-id"),
        "mine-7"
    );
    assert_eq!(server.get("/v1/nothing").await.header("x-request-id").len(), 36);
}
