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
        "page_size=0",
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

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_ours_are_refused_over_both_transports() {
    let server = Server::start().await;
    for host in ["evil.example", "127.0.0.1.evil.example:8080", "192.0.2.1"] {
        let request = server.request(Method::GET, "/v1/images").header("host", host);
        Answer::of(request.send().await.unwrap())
            .await
            .problem(421, "unknown_host");
    }
    let ours = server.request(Method::GET, "/v1/images").header("host", "localhost:1");
    assert_eq!(ours.send().await.unwrap().status(), StatusCode::OK);
    let call = server
        .request(Method::POST, "/vdisk.v1.PoolService/ListPools")
        .header("host", "evil.example")
        .header("content-type", "application/grpc");
    let answer = Answer::of(call.send().await.unwrap()).await;
    assert_eq!(
        (answer.header("grpc-status"), answer.header("vdisk-error-code")),
        ("7", "unknown_host")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_are_bounded() {
    let server = Server::start().await;
    let long = format!("/v1/images?name={}", "a".repeat(9 << 10));
    server.get(&long).await.problem(414, "target_too_long");
    let mut request = server.request(Method::GET, "/v1/images");
    for number in 0..60 {
        request = request.header(format!("x-filler-{number}"), "a".repeat(1000));
    }
    Answer::of(request.send().await.unwrap())
        .await
        .problem(431, "headers_too_large");
}

/// Whatever fails, and however: answers name neither folders of the host nor secrets.
#[tokio::test(flavor = "multi_thread")]
async fn answers_hold_no_path_and_no_secret() {
    let server = Server::start().await;
    let canary = "canary-4f1d8a-passphrase";
    let secret = server
        .post("/v1/secrets", json!({"name": "luks", "value": canary}))
        .await;
    let secret = secret.expect(StatusCode::CREATED).id();
    let image = server.create("disk", json!({"virtual_size": 1_048_576})).await;
    let pool = server.dir.path().join("data/pools/default");
    let folder = server.dir.path().to_str().unwrap().to_owned();
    let mut answers = Vec::new();
    answers.push(
        server
            .post("/v1/secrets", json!({"name": "luks", "value": canary}))
            .await,
    );
    answers.push(
        server
            .post("/v1/secrets", json!({"name": "a/b", "value": canary}))
            .await,
    );
    answers.push(
        server
            .post("/v1/secrets", json!({"name": "b", "value": canary, "more": 1}))
            .await,
    );
    answers.push(
        server
            .post("/v1/secrets", json!({"name": "b", "value": [canary]}))
            .await,
    );
    let verbs = [
        (
            "convert",
            json!({"name": "copy", "format": "luks", "options": {"key-secret": "k"}, "secrets": {"k": secret}}),
        ),
        (
            "convert",
            json!({"name": "copy", "format": "luks", "secrets": {"key-secret": secret}}),
        ),
        ("rebase", json!({"backing": image})),
        ("resize", json!({"virtual_size": u64::MAX})),
        ("snapshots", json!({"name": "../x"})),
    ];
    for (verb, body) in &verbs {
        answers.push(server.post(&format!("/v1/images/{image}/{verb}"), body.clone()).await);
    }
    for file in ["/etc/passwd", "../../vdiskd.db", "no-such-file", "link"] {
        let _ = std::os::unix::fs::symlink("/etc/passwd", pool.join("link"));
        let body = json!({"name": "taken-in", "format": "raw", "source": {"pool_file": file}});
        answers.push(server.post("/v1/images/import", body).await);
    }
    // The file goes away, then is one that nothing can be made of, then its folder goes.
    let file = std::fs::read_dir(&pool).unwrap().map(|entry| entry.unwrap().path());
    let file = file
        .into_iter()
        .find(|path| path.is_file() && !path.is_symlink())
        .unwrap();
    let paths = ["info", "map", "data", "file", "chain", "snapshots", "upload"];
    for round in 0..3 {
        match round {
            0 => std::fs::write(&file, vec![0xff; 70_000]).unwrap(),
            1 => std::fs::remove_file(&file).unwrap(),
            _ => std::fs::remove_dir_all(&pool).unwrap(),
        }
        for path in paths {
            answers.push(server.get(&format!("/v1/images/{image}/{path}")).await);
        }
        answers.push(server.post(&format!("/v1/images/{image}/check"), json!({})).await);
        answers.push(
            server
                .post(
                    "/v1/images",
                    json!({"name": format!("new{round}"), "format": "raw", "virtual_size": 512}),
                )
                .await,
        );
        answers.push(server.get("/readyz").await);
        answers.push(server.get("/v1/pools/default").await);
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    answers.push(server.get("/v1/jobs").await);
    answers.push(server.get("/metrics").await);
    assert!(answers.iter().filter(|answer| answer.status.is_client_error()).count() > 10);
    assert!(answers.iter().any(|answer| answer.status.is_server_error()));
    for answer in answers {
        let text = String::from_utf8_lossy(&answer.bytes).into_owned();
        for forbidden in [canary, &folder, "/etc", "vdiskd.db", "master.key", "os error"] {
            let own_words = forbidden.starts_with("/etc") && text.contains("link");
            assert!(own_words || !text.contains(forbidden), "{forbidden} in {text}");
        }
    }
}
