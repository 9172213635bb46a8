//! Tokens and roles: every route and every call refuses who may not ask for it.

use std::collections::BTreeSet;

use prost::Message;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use vdisk_api::access::roles::{Need, TABLE};
use vdisk_api::access::{Authentication, Policy};
use vdisk_api::http::document;
use vdisk_api::proto;
use vdisk_api::vdisk_service::model::Role;

use crate::server::{Answer, Server};

const UNKNOWN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

async fn closed() -> Server {
    let policy = Policy {
        authentication: Authentication::Required,
        ..Policy::default()
    };
    Server::start_as(|_| {}, policy).await
}

/// A token of each role, and an empty one.
struct Tokens([(Option<Role>, String); 4]);

async fn tokens(server: &Server) -> Tokens {
    let mut made = [
        (None, String::new()),
        (None, String::new()),
        (None, String::new()),
        (None, String::new()),
    ];
    for (slot, role) in made.iter_mut().skip(1).zip(Role::ALL) {
        *slot = (Some(*role), server.token(role.as_str(), *role).await);
    }
    Tokens(made)
}

async fn http(server: &Server, method: &str, path: &str, token: &str) -> Answer {
    let path = path
        .replace("{id}", UNKNOWN)
        .replace("{pool}", "none")
        .replace("{name}", "none");
    let mut request = server.request(method.to_uppercase().parse::<Method>().unwrap(), &path);
    if !token.is_empty() {
        request = request.bearer_auth(token);
    }
    if !["get", "delete"].contains(&method) {
        request = request.header("content-type", "application/json").body("[]");
    }
    Answer::of(request.send().await.unwrap()).await
}

/// The operations of the document with the role each takes.
fn operations() -> Vec<(String, String, Option<Role>)> {
    let document: Value = serde_json::from_str(document::json()).unwrap();
    let paths = document["paths"].as_object().unwrap().clone();
    let each = paths.into_iter().flat_map(|(path, item)| {
        let item = item.as_object().unwrap().clone();
        item.into_iter().map(move |(method, operation)| {
            let role = operation["x-role"].as_str().map(|role| role.parse().unwrap());
            (method, path.clone(), role)
        })
    });
    each.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_refuses_no_token_and_too_small_a_role() {
    let server = closed().await;
    let Tokens(tokens) = tokens(&server).await;
    let mut refused = 0;
    for (method, path, needed) in operations() {
        for (role, token) in &tokens {
            // Streams of events do not end.
            if path == "/v1/events" && *role >= needed {
                continue;
            }
            let answer = http(&server, &method, &path, token).await;
            let place = format!("{method} {path} as {role:?}");
            match needed {
                Some(_) if role.is_none() => {
                    assert_eq!(
                        (answer.status.as_u16(), &answer.body["code"]),
                        (401, &json!("unauthenticated")),
                        "{place}"
                    );
                    assert!(answer.header("www-authenticate").starts_with("Bearer"), "{place}");
                    refused += 1;
                }
                Some(needed) if *role < Some(needed) => {
                    assert_eq!(
                        (answer.status.as_u16(), &answer.body["code"]),
                        (403, &json!("forbidden")),
                        "{place}"
                    );
                    refused += 1;
                }
                _ => assert!(![401, 403].contains(&answer.status.as_u16()), "{place}: {answer:?}"),
            }
        }
    }
    assert!(refused > 80, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_refuses_no_token_and_too_small_a_role() {
    let server = closed().await;
    let Tokens(tokens) = tokens(&server).await;
    let mut refused = 0;
    for call in calls() {
        let needed = TABLE.iter().find(|row| row.2 == call).map(|row| row.3);
        let Some(Need::Role(needed)) = needed else {
            panic!("{call} is not in the table")
        };
        for (role, token) in &tokens {
            let mut request = server
                .request(Method::POST, &format!("/vdisk.v1.{call}"))
                .header("content-type", "application/grpc")
                .body(vec![0, 0, 0, 0, 0]);
            if role.is_some() {
                request = request.bearer_auth(token);
            }
            // The head is enough: streams may go on.
            let head = request.send().await.unwrap();
            let status = head
                .headers()
                .get("grpc-status")
                .map_or("", |value| value.to_str().unwrap());
            let code = head
                .headers()
                .get("vdisk-error-code")
                .map_or("", |value| value.to_str().unwrap());
            let place = format!("{call} as {role:?}: {status} {code}");
            if role.is_none() {
                assert_eq!((status, code), ("16", "unauthenticated"), "{place}");
                refused += 1;
            } else if *role < Some(needed) {
                assert_eq!((status, code), ("7", "forbidden"), "{place}");
                refused += 1;
            } else {
                assert!(!["unauthenticated", "forbidden"].contains(&code), "{place}");
            }
        }
    }
    assert!(refused > 60, "{refused}");
}

/// Every call of our services, as `Service/Call`.
pub fn calls() -> Vec<String> {
    let descriptors = prost_types::FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
    let services = descriptors.file.into_iter().flat_map(|file| file.service);
    let calls = services.flat_map(|service| {
        let name = service.name().to_owned();
        let methods = service.method.into_iter();
        methods
            .map(move |method| format!("{name}/{}", method.name()))
            .collect::<Vec<_>>()
    });
    calls.collect()
}

#[test]
fn the_table_has_every_route_and_call_and_no_other() {
    let routes: BTreeSet<_> = operations()
        .into_iter()
        .map(|(method, path, _)| (method.to_uppercase(), path))
        .collect();
    let table: BTreeSet<_> = TABLE
        .iter()
        .filter(|row| row.1.starts_with("/v1"))
        .map(|row| (row.0.to_owned(), row.1.to_owned()))
        .collect();
    let documented: BTreeSet<_> = routes.into_iter().filter(|(_, path)| path.starts_with("/v1")).collect();
    assert_eq!(documented, table);
    let calls: BTreeSet<_> = calls().into_iter().collect();
    let table: BTreeSet<_> = TABLE
        .iter()
        .filter(|row| !row.2.is_empty())
        .map(|row| row.2.to_owned())
        .collect();
    assert_eq!(calls, table);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_documents_are_open_and_metrics_by_choice() {
    let server = closed().await;
    for path in ["/healthz", "/readyz", "/openapi.json", "/", "/docs/", "/ui/app.js"] {
        server.get(path).await.expect(StatusCode::OK);
    }
    server.get("/metrics").await.problem(401, "unauthenticated");
    let health = server
        .request(Method::POST, "/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .body(vec![0, 0, 0, 0, 0]);
    assert_eq!(health.send().await.unwrap().headers().get("vdisk-error-code"), None);
    let policy = Policy {
        authentication: Authentication::Required,
        open_metrics: true,
        ..Policy::default()
    };
    let server = Server::start_as(|_| {}, policy).await;
    server.get("/metrics").await.expect(StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_counts_until_it_is_revoked_and_is_shown_once() {
    let server = closed().await;
    let admin = server.token("root", Role::Admin).await;
    let make = |key: &'static str, body: Value| {
        let request = server
            .request(Method::POST, "/v1/tokens")
            .bearer_auth(&admin)
            .json(&body);
        async move { Answer::of(request.header("idempotency-key", key).send().await.unwrap()).await }
    };
    let made = make("k1", json!({"name": "ci", "role": "reader"}))
        .await
        .expect(StatusCode::CREATED);
    let (id, text) = (made.id(), made.body["token"].as_str().unwrap().to_owned());
    assert!(text.starts_with("vdiskd_") && text.len() == 50, "{text}");
    let again = make("k1", json!({"name": "ci", "role": "reader"}))
        .await
        .expect(StatusCode::CREATED);
    assert_eq!((again.id(), &again.body["token"]), (id.clone(), &Value::Null));
    make("k2", json!({"name": "ci", "role": "admin"}))
        .await
        .problem(409, "name_taken");
    make("k3", json!({"name": "x", "role": "root"}))
        .await
        .problem(422, "invalid_argument");
    make("k4", json!({"name": "x", "role": "reader", "expires_in_days": 0}))
        .await
        .problem(422, "invalid_argument");
    // The audit log calls callers without a token so.
    for (key, name) in [("k5", "anonymous"), ("k6", "Anonymous")] {
        let refused = make(key, json!({"name": name, "role": "reader"})).await;
        refused.problem(422, "invalid_name");
        assert_eq!(refused.body["field"], "name");
    }

    let as_ci = || server.request(Method::GET, "/v1/images").bearer_auth(&text).send();
    assert_eq!(as_ci().await.unwrap().status(), StatusCode::OK);
    let list = server.request(Method::GET, "/v1/tokens").bearer_auth(&admin);
    let list = Answer::of(list.send().await.unwrap()).await;
    assert!(!String::from_utf8_lossy(&list.bytes).contains(&text));
    let database = std::fs::read(server.dir.path().join("data/vdiskd.db")).unwrap();
    let log = std::fs::read(server.dir.path().join("data/vdiskd.db-wal")).unwrap_or_default();
    for bytes in [database, log] {
        assert!(!bytes.windows(text.len()).any(|window| window == text.as_bytes()));
    }
    let revoke = server
        .request(Method::DELETE, &format!("/v1/tokens/{id}"))
        .bearer_auth(&admin);
    assert_eq!(revoke.send().await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(as_ci().await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_credentials_are_refused_even_where_none_are_needed() {
    let server = Server::start().await;
    let good = server.token("root", Role::Reader).await;
    let cases = [
        (
            "Bearer vdiskd_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned(),
            401,
        ),
        ("Basic cm9vdDpyb290".to_owned(), 401),
        ("Bearer".to_owned(), 401),
        (format!("Bearer {good}x"), 401),
        (format!("Bearer {}", good.to_uppercase()), 401),
        (format!("Bearer {}", &good[..good.len() - 1]), 401),
        (format!("Bearer {good}"), 200),
        (format!("bearer {good}"), 200),
    ];
    for (value, status) in cases {
        let request = server
            .request(Method::GET, "/v1/images")
            .header("authorization", &value);
        assert_eq!(request.send().await.unwrap().status(), status, "{value}");
    }
    let twice = server
        .request(Method::GET, "/v1/images")
        .header("authorization", format!("Bearer {good}"))
        .header("authorization", format!("Bearer {good}"));
    assert_eq!(twice.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    // A token's role counts although an anonymous caller could do more here.
    let write = server
        .request(Method::POST, "/v1/pools/default/scan")
        .bearer_auth(&good);
    assert_eq!(write.send().await.unwrap().status(), StatusCode::FORBIDDEN);
}

/// A gRPC content type on an HTTP route must not find the table of the other transport.
#[tokio::test(flavor = "multi_thread")]
async fn the_content_type_does_not_choose_the_table() {
    let server = closed().await;
    for path in ["/v1/images", "/v1/tokens", "/v1/secrets"] {
        for kind in [
            "application/grpc",
            "application/grpc-web",
            "application/grpc; x=/healthz",
        ] {
            let request = server
                .request(Method::POST, path)
                .header("content-type", kind)
                .body("{}");
            let answer = Answer::of(request.send().await.unwrap()).await;
            let refused =
                answer.status == StatusCode::UNAUTHORIZED || ["16", "12"].contains(&answer.header("grpc-status"));
            assert!(
                refused || answer.status == StatusCode::NOT_FOUND,
                "{path} {kind}: {answer:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_says_who_did_what() {
    let server = closed().await;
    let admin = server.token("root", Role::Admin).await;
    let reader = server.token("eyes", Role::Reader).await;
    let send = |method: Method, path: &str, token: &str, body: Value| {
        server.request(method, path).bearer_auth(token).json(&body).send()
    };
    let image = json!({"name": "disk", "format": "qcow2", "virtual_size": 1_048_576});
    send(Method::POST, "/v1/images", &reader, image.clone()).await.unwrap();
    send(Method::POST, "/v1/images", &admin, image.clone()).await.unwrap();
    send(Method::POST, "/v1/images", &admin, image).await.unwrap();
    send(Method::GET, "/v1/images", &admin, Value::Null).await.unwrap();
    server.get("/v1/images").await;
    let call = server
        .request(Method::POST, "/vdisk.v1.PoolService/ScanPool")
        .bearer_auth(&admin)
        .header("content-type", "application/grpc")
        .body(vec![0, 0, 0, 0, 0]);
    call.send().await.unwrap().bytes().await.unwrap();

    let expected = [
        ("root", "grpc", "PoolService/ScanPool", "NotFound"),
        ("anonymous", "http", "GET /v1/images", "401"),
        ("root", "http", "POST /v1/images", "409"),
        ("root", "http", "POST /v1/images", "201"),
        ("eyes", "http", "POST /v1/images", "403"),
    ];
    let mut found = Vec::new();
    for _ in 0..2000 {
        let answer = send(Method::GET, "/v1/audit?page_size=100", &admin, Value::Null)
            .await
            .unwrap();
        let page = Answer::of(answer).await.expect(StatusCode::OK).body;
        let items = page["items"].as_array().unwrap().clone();
        let text = |item: &Value, field: &str| item[field].as_str().unwrap().to_owned();
        found = items
            .iter()
            .filter(|item| item["action"] != "GET /v1/audit")
            .map(|item| {
                (
                    text(item, "caller"),
                    text(item, "transport"),
                    text(item, "action"),
                    text(item, "outcome"),
                )
            })
            .collect::<Vec<_>>();
        if found.len() == expected.len() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let expected = expected.map(|(a, b, c, d)| (a.to_owned(), b.to_owned(), c.to_owned(), d.to_owned()));
    assert_eq!(found, expected);
}

/// A route that matched answers over HTTP, is noted so, and not as a call that was cancelled.
#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_is_not_misled_by_the_content_type() {
    let server = closed().await;
    let admin = server.token("root", Role::Admin).await;
    let reader = server.token("eyes", Role::Reader).await;
    let path = "/v1/secrets/01890a5d-ac96-774b-bcce-b302099a8057";
    for (token, status) in [(&reader, 403), (&admin, 404)] {
        let request = server
            .request(Method::DELETE, path)
            .bearer_auth(token)
            .header("content-type", "application/grpc");
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    }
    let mut items = Vec::new();
    for _ in 0..2000 {
        let request = server.request(Method::GET, "/v1/audit").bearer_auth(&admin);
        let page = Answer::of(request.send().await.unwrap())
            .await
            .expect(StatusCode::OK)
            .body;
        items.clone_from(page["items"].as_array().unwrap());
        items.retain(|item| item["action"] == "DELETE /v1/secrets/{id}");
        if items.len() == 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let noted: Vec<_> = items
        .iter()
        .map(|item| (&item["transport"], &item["target"], &item["outcome"]))
        .collect();
    let (http, target) = (json!("http"), json!(path));
    assert_eq!(
        noted,
        [(&http, &target, &json!("404")), (&http, &target, &json!("403"))]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_is_bounded() {
    let server = Server::start_with(|config| config.audit_entries = 5).await;
    for number in 0..20 {
        server
            .post(&format!("/v1/pools/none-{number}/scan"), json!({}))
            .await
            .problem(404, "not_found");
    }
    for _ in 0..2000 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let items = server.get("/v1/audit?page_size=100").await.body["items"]
            .as_array()
            .unwrap()
            .len();
        if items == 5 {
            return;
        }
    }
    panic!("the log does not shrink to 5 entries");
}
