//! The pages and what operators ask for.

use reqwest::StatusCode;
use serde_json::json;

use crate::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_come_from_here_alone() {
    let server = Server::start().await;
    for path in [
        "/",
        "/ui/app.js",
        "/ui/events.js",
        "/ui/rows.js",
        "/ui/session.js",
        "/ui/style.css",
        "/ui/icon.svg",
        "/docs/",
        "/docs/swagger-ui-bundle.js",
        "/openapi.json",
    ] {
        let answer = server.get(path).await.expect(StatusCode::OK);
        assert!(!answer.bytes.is_empty(), "{path}");
        if path != "/openapi.json" {
            let policy = answer.header("content-security-policy");
            assert!(policy.contains("frame-ancestors 'none'"), "{path}: '{policy}'");
            assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        }
    }
    let page = String::from_utf8(server.get("/").await.bytes).unwrap();
    let docs = String::from_utf8(server.get("/docs/").await.bytes).unwrap();
    for text in [page, docs] {
        let outside: Vec<_> = ["src=\"http", "href=\"http", "src=\"//", "href=\"//"]
            .into_iter()
            .filter(|mark| text.contains(mark))
            .collect();
        assert!(outside.is_empty(), "{outside:?} in {text}");
    }
    let docs = String::from_utf8(server.get("/docs/swagger-initializer.js").await.bytes).unwrap();
    assert!(docs.contains("/openapi.json"), "{docs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_metrics_are_served() {
    let server = Server::start().await;
    assert_eq!(server.get("/healthz").await.expect(StatusCode::OK).body["status"], "ok");
    server.get("/readyz").await.expect(StatusCode::OK);
    let id = server.upload("disk", "raw", vec![1; 4096]).await;
    let queued = server
        .post(
            &format!("/v1/images/{id}/convert"),
            json!({"name": "copy", "format": "raw"}),
        )
        .await;
    server.ended(queued).await;
    server.get("/v1/images/unknown").await;
    let answer = server.get("/metrics").await.expect(StatusCode::OK);
    let text = String::from_utf8(answer.bytes).unwrap();
    for line in [
        "vdisk_images{state=\"ready\"} 2",
        "vdisk_jobs{kind=\"convert\",state=\"succeeded\"} 1",
        "vdisk_transferred_bytes_total{direction=\"in\"} 4096",
        "vdisk_http_request_duration_seconds_count{method=\"GET\",route=\"/v1/images/{id}\",status=\"404\"} 1",
        "vdisk_queue_age_seconds 0.0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn formats_and_pools_are_listed() {
    let server = Server::start().await;
    let formats = server.get("/v1/formats").await.expect(StatusCode::OK).body;
    let names: Vec<_> = formats["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|format| format["name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"raw") && names.contains(&"qcow2"), "{names:?}");
    let pool = server.get("/v1/pools/default").await.expect(StatusCode::OK).body;
    assert_eq!((&pool["image_count"], &pool["default"]), (&json!(0), &json!(true)));
    assert_eq!(server.get("/v1/pools").await.body["items"][0]["name"], "default");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let server = Server::start().await;
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    let cases = [
        (None, "text/plain; version=0.0.4; charset=utf-8"),
        (Some("text/plain"), "text/plain; version=0.0.4; charset=utf-8"),
        (
            Some(prometheus),
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ];
    for (accept, kind) in cases {
        let request = server.request(reqwest::Method::GET, "/metrics");
        let request = accept.map_or(request.try_clone().unwrap(), |accept| request.header("accept", accept));
        let answer = crate::server::Answer::of(request.send().await.unwrap()).await;
        assert_eq!(answer.header("content-type"), kind);
        let text = String::from_utf8(answer.bytes).unwrap();
        assert_eq!(text.ends_with("# EOF\n"), kind.starts_with("application/"), "{text}");
    }
}
