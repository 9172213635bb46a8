//! The usual attacks on an API, on every route that the document has: other verbs, other media types, bodies over the limit, fields that
//! are not for clients to set, ids of other things, names and queries made to be executed.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use vdisk_api::http::document;

use crate::server::{Answer, Server};

const UNKNOWN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// Texts that mean something to a shell, a database, a file system, a page or a log.
const NASTY: [&str; 14] = [
    "' OR '1'='1",
    "1; DROP TABLE images; --",
    "../../../../etc/passwd",
    "..\\..\\windows",
    "/etc/passwd",
    "$(id)",
    "`id`",
    "| id",
    "<script>alert(1)</script>",
    "${jndi:ldap://127.0.0.1/x}",
    "%s%s%s%n",
    "{{7*7}}",
    "a\r\nset-cookie: x=1",
    "\u{202e}\u{0}\u{7f}",
];

struct Operation {
    method: String,
    path: String,
    document: Value,
}

impl Operation {
    fn parameters(&self, place: &str) -> Vec<String> {
        let all = self.document["parameters"].as_array().cloned().unwrap_or_default();
        let here = all.into_iter().filter(|parameter| parameter["in"] == place);
        here.map(|parameter| parameter["name"].as_str().unwrap().to_owned())
            .collect()
    }

    fn json_example(&self) -> Option<&Value> {
        self.document.pointer("/requestBody/content/application~1json/example")
    }
}

fn operations() -> Vec<Operation> {
    let document: Value = serde_json::from_str(document::json()).unwrap();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            all.push(Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                document: operation.clone(),
            });
        }
    }
    all
}

fn filled(path: &str, with: &str) -> String {
    let with = encoded(with);
    ["{id}", "{pool}", "{name}"]
        .iter()
        .fold(path.to_owned(), |path, hole| path.replace(hole, &with))
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

async fn send(server: &Server, method: &str, path: &str, kind: Option<&str>, body: Vec<u8>) -> Answer {
    let request = server.request(method.parse::<Method>().unwrap(), path).body(body);
    let request = kind
        .into_iter()
        .fold(request, |request, kind| request.header("content-type", kind));
    Answer::of(request.send().await.unwrap()).await
}

/// A refusal that says nothing about the machine.
fn assert_refused(answer: &Answer, place: &str) {
    assert!(answer.status.is_client_error(), "{place}: {answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json", "{place}");
    assert!(answer.header("set-cookie").is_empty(), "{place}");
    let text = String::from_utf8_lossy(&answer.bytes);
    for secret in ["root:", "sqlx", "SELECT", "src/", "/tmp", "panicked"] {
        assert!(!text.contains(secret), "{place}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_verbs_are_answered_with_those_there_are() {
    let server = Server::start().await;
    let operations = operations();
    let paths: BTreeSet<_> = operations.iter().map(|operation| operation.path.clone()).collect();
    for path in paths {
        let known: BTreeSet<_> = operations
            .iter()
            .filter(|operation| operation.path == path)
            .flat_map(|operation| match operation.method.as_str() {
                "GET" => vec!["GET".to_owned(), "HEAD".to_owned()],
                other => vec![other.to_owned()],
            })
            .collect();
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"] {
            if known.contains(method) {
                continue;
            }
            let answer = send(&server, method, &filled(&path, UNKNOWN), None, Vec::new()).await;
            answer.problem(405, "method_not_allowed");
            let allowed = answer.header("allow").split(',').map(|method| method.trim().to_owned());
            assert_eq!(allowed.collect::<BTreeSet<_>>(), known, "{method} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_other_kinds_and_sizes_are_refused() {
    let server = Server::start().await;
    let kinds = [
        None,
        Some("text/plain"),
        Some("application/xml"),
        Some("application/x-www-form-urlencoded"),
        Some("multipart/form-data; boundary=x"),
        Some("application/json-patch+json"),
    ];
    let mut tried = 0;
    for operation in operations() {
        let Some(example) = operation.json_example() else {
            continue;
        };
        let (method, path) = (operation.method.as_str(), filled(&operation.path, UNKNOWN));
        let body = example.to_string().into_bytes();
        for kind in kinds {
            let answer = send(&server, method, &path, kind, body.clone()).await;
            answer.problem(415, "unsupported_media_type");
        }
        let json = Some("application/json");
        let large = format!("{{\"name\": \"{}\"}}", "a".repeat(1 << 20)).into_bytes();
        send(&server, method, &path, json, large)
            .await
            .problem(413, "body_too_large");
        let broken = [
            b"{".to_vec(),
            b"\xff\xfe".to_vec(),
            [body.clone(), b"]".to_vec()].concat(),
        ];
        for broken in broken {
            send(&server, method, &path, json, broken)
                .await
                .problem(400, "malformed_body");
        }
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        for wrong in [b"[]".to_vec(), b"7".to_vec(), b"\"x\"".to_vec(), b"null".to_vec(), deep] {
            let answer = send(&server, method, &path, json, wrong).await;
            assert_refused(&answer, &format!("{method} {path}"));
        }
        tried += 1;
    }
    assert!(tried >= 16, "{tried}");
}

/// What the service decides is not for a body to set, and what it does not know is a mistake.
#[tokio::test(flavor = "multi_thread")]
async fn fields_that_are_not_for_clients_are_refused() {
    let server = Server::start().await;
    let fields = [
        ("id", json!(UNKNOWN)),
        ("state", json!("ready")),
        ("generation", json!(99)),
        ("created_at", json!("2026-01-01T00:00:00Z")),
        ("file", json!("/etc/passwd")),
        ("encrypted", json!(false)),
        ("token", json!("vdiskd_x")),
        ("__proto__", json!({"role": "admin"})),
    ];
    for operation in operations() {
        let Some(example) = operation.json_example() else {
            continue;
        };
        let path = filled(&operation.path, UNKNOWN);
        for (field, value) in &fields {
            let mut body = example.clone();
            body[*field] = value.clone();
            let body = body.to_string().into_bytes();
            let answer = send(&server, &operation.method, &path, Some("application/json"), body).await;
            answer.problem(422, "invalid_argument");
            assert_eq!(answer.body["field"], *field, "{} {path}", operation.method);
        }
    }
    for list in ["images", "jobs", "secrets", "tokens", "webhooks"] {
        let items = server.get(&format!("/v1/{list}")).await.expect(StatusCode::OK).body["items"].clone();
        assert_eq!(items, json!([]), "{list}");
    }
}

/// An id counts for what it was given for: that of another kind of thing is unknown.
#[tokio::test(flavor = "multi_thread")]
async fn ids_of_other_things_are_unknown() {
    let server = Server::start().await;
    let image = server.create("disk", json!({"virtual_size": 1_048_576})).await;
    let queued = server.post(&format!("/v1/images/{image}/check"), json!({})).await;
    let job = server.ended(queued).await["id"].as_str().unwrap().to_owned();
    let secret = server
        .post("/v1/secrets", json!({"name": "s", "value": "v"}))
        .await
        .id();
    let things = [("images", &image), ("jobs", &job), ("secrets", &secret)];
    for operation in operations() {
        let noun = operation.path.split('/').nth(2).unwrap_or_default().to_owned();
        if !operation.path.contains("{id}") {
            continue;
        }
        for (_, id) in things.iter().filter(|(kind, _)| *kind != noun) {
            let body = operation.json_example().map(|example| example.to_string().into_bytes());
            let kind = body.is_some().then_some("application/json");
            let path = operation.path.replace("{id}", id).replace("{name}", "none");
            let answer = send(&server, &operation.method, &path, kind, body.unwrap_or_default()).await;
            answer.problem(404, "not_found");
        }
    }
    server.get(&format!("/v1/images/{image}")).await.expect(StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_to_be_executed_is_a_name_of_nothing() {
    let server = Server::start().await;
    for operation in operations() {
        let (method, body) = (operation.method.as_str(), operation.json_example());
        let body = body.map(|example| example.to_string().into_bytes());
        let kind = body.is_some().then_some("application/json");
        for text in NASTY {
            if operation.path.contains('{') {
                let path = filled(&operation.path, text);
                let answer = send(&server, method, &path, kind, body.clone().unwrap_or_default()).await;
                assert_refused(&answer, &format!("{method} {path}"));
            }
            for name in operation.parameters("query") {
                // A stream without a filter goes on for ever.
                if operation.path == "/v1/events" && name != "after" && name != "image" {
                    continue;
                }
                let path = format!("{}?{name}={}", filled(&operation.path, UNKNOWN), encoded(text));
                let answer = send(&server, method, &path, kind, body.clone().unwrap_or_default()).await;
                assert!(!answer.status.is_server_error(), "{method} {path}: {answer:?}");
            }
        }
    }
}

/// The same texts in every field of every body that takes a text.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_to_be_executed_makes_no_body_fail_in_another_way() {
    let server = Server::start().await;
    for operation in operations() {
        let Some(example) = operation.json_example() else {
            continue;
        };
        let path = filled(&operation.path, UNKNOWN);
        let texts = example
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, value)| value.is_string());
        for (field, _) in texts {
            for text in NASTY {
                let mut body = example.clone();
                body[field] = json!(text);
                let body = body.to_string().into_bytes();
                let answer = send(&server, &operation.method, &path, Some("application/json"), body).await;
                // A secret may be any text.
                let any = [("/v1/secrets", "value"), ("/v1/webhooks", "secret")]
                    .contains(&(operation.path.as_str(), field.as_str()));
                if !any || answer.status.is_client_error() {
                    assert_refused(&answer, &format!("{} {path} {field}", operation.method));
                }
            }
        }
    }
}
