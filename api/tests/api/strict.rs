//! What an operation does not take is refused, wherever it stands: nothing that a client said is passed over.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use vdisk_api::http::document;

use crate::server::{Answer, Server};

const UNKNOWN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// Method, path for a thing that there is not, and what the document says.
fn operations(document: &Value) -> Vec<(Method, String, &Value)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let path = path.replace("{id}", UNKNOWN).replace("{pool}", "default");
        for (method, operation) in item.as_object().unwrap() {
            let method = method.to_uppercase().parse().unwrap();
            all.push((method, path.replace("{name}", "none"), operation));
        }
    }
    all
}

fn read_document() -> Value {
    serde_json::from_str(document::json()).unwrap()
}

async fn send(server: &Server, method: &Method, path: &str, body: Option<&Value>) -> Answer {
    let request = server.request(method.clone(), path);
    let request = match body {
        Some(body) => request.json(body),
        None => request,
    };
    Answer::of(request.send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_field_that_an_operation_does_not_take_is_refused() {
    let server = Server::start().await;
    let document = read_document();
    for (method, path, operation) in operations(&document) {
        if !path.starts_with("/v1/") {
            let answer = send(&server, &method, &format!("{path}?x=1"), None).await;
            answer.expect(StatusCode::OK);
            continue;
        }
        let body = operation.pointer("/requestBody/content/application~1json/example");
        for query in ["x=1", "x", "x=1&x=2", "%78=1"] {
            let answer = send(&server, &method, &format!("{path}?{query}"), body).await;
            answer.problem(422, "invalid_argument");
            assert_eq!(answer.body["field"], "x", "{method} {path}?{query}");
        }
    }
    let head = send(&server, &Method::HEAD, "/v1/formats?x=1", None).await;
    assert_eq!(head.status, StatusCode::UNPROCESSABLE_ENTITY);
    for list in ["images", "jobs", "secrets", "tokens", "webhooks"] {
        let items = server.get(&format!("/v1/{list}")).await.body["items"].clone();
        assert_eq!(items, json!([]), "{list}");
    }
    server.get("/v1/formats?").await.expect(StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_never_runs_the_job() {
    let server = Server::start().await;
    let document = read_document();
    let disk = server.upload("disk", "raw", vec![7; 1 << 16]).await;
    for (method, path, operation) in operations(&document) {
        let responses = &operation["responses"];
        let example = operation.pointer("/requestBody/content/application~1json/example");
        let (Some(_), Some(example)) = (responses.get("202"), example) else {
            continue;
        };
        let path = path.replace(UNKNOWN, &disk);
        let answer = send(&server, &method, &format!("{path}?dry_run=true"), Some(example)).await;
        if path.ends_with("/scan") {
            answer.expect(StatusCode::OK);
        } else {
            answer.problem(422, "invalid_argument");
            assert_eq!(answer.body["field"], "dry_run", "{path}");
        }
    }
    let scan = "/v1/pools/default/scan";
    for (path, body) in [
        (scan.to_owned(), json!({"dry_run": true})),
        (format!("{scan}?dry_run=true"), json!({"dry_run": false})),
        (format!("{scan}?dry_run=false"), json!({"dry_run": true})),
    ] {
        let plan = server.post(&path, body).await.expect(StatusCode::OK).body;
        assert_eq!(plan["kind"], "scan", "{path}");
    }
    let refused = server.post(scan, json!({"dry_run": 1})).await;
    refused.problem(422, "invalid_argument");
    let unknown = server.post(scan, json!({"pool": "x"})).await;
    assert_eq!(unknown.body["field"], "pool", "{unknown:?}");
    assert_eq!(server.get("/v1/jobs").await.body["items"], json!([]));
    for body in [json!({}), json!({"dry_run": false}), json!({"dry_run": null})] {
        server.post(scan, body).await.expect(StatusCode::ACCEPTED);
    }
    let convert = json!({"name": "copy", "format": "raw", "dry_run": null});
    let queued = server.post(&format!("/v1/images/{disk}/convert"), convert).await;
    queued.expect(StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_where_none_is_taken_is_refused() {
    let server = Server::start().await;
    let document = read_document();
    let mut tried = 0;
    for (method, path, operation) in operations(&document) {
        if method == Method::GET || operation.get("requestBody").is_some() {
            continue;
        }
        for (body, status, code) in [
            ("garbage", 400, "malformed_body"),
            ("{} {}", 400, "malformed_body"),
            ("[]", 422, "invalid_argument"),
            ("null", 422, "invalid_argument"),
            (r#"{"dry_run": true}"#, 422, "invalid_argument"),
            ("", 404, "not_found"),
            ("{}", 404, "not_found"),
        ] {
            for kind in ["application/json", "application/x-www-form-urlencoded"] {
                let request = server.request(method.clone(), &path).header("content-type", kind);
                let answer = Answer::of(request.body(body).send().await.unwrap()).await;
                answer.problem(status, code);
                if body.contains("dry_run") {
                    assert_eq!(answer.body["field"], "dry_run", "{method} {path}");
                }
                if status != 404 {
                    let known = operation["responses"].get(status.to_string());
                    let said = known
                        .and_then(|known| known["description"].as_str())
                        .unwrap_or_default();
                    assert!(said.contains(code), "{method} {path} documents no {code}");
                }
            }
        }
        tried += 1;
    }
    assert!(tried >= 9, "{tried}");
}

/// The schema that a reference leads to, or the schema itself.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let choices = schema["oneOf"].as_array().into_iter().flatten();
    let mut references = choices.chain([schema]).filter_map(|schema| schema["$ref"].as_str());
    match references.next() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// Paths to all fields of a body, those of objects in it too.
fn fields(document: &Value, schema: &Value, above: &[String]) -> Vec<Vec<String>> {
    let properties = resolved(document, schema)["properties"].as_object();
    let each = properties.into_iter().flatten().flat_map(|(name, schema)| {
        let path = [above, std::slice::from_ref(name)].concat();
        let below = fields(document, schema, &path);
        [vec![path], below].concat()
    });
    each.collect()
}

fn put(body: &mut Value, path: &[String], value: &Value) {
    match path {
        [] => *body = value.clone(),
        [name, rest @ ..] => {
            if !body.is_object() {
                *body = json!({});
            }
            put(&mut body[name], rest, value);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_another_type_is_not_repeated() {
    let server = Server::start().await;
    for (path, body) in [
        ("/v1/secrets", json!({"name": "x", "value": 4_711_331})),
        ("/v1/secrets", json!({"name": "x", "value": 4711.331})),
        ("/v1/secrets", json!("4711331")),
        (
            "/v1/webhooks",
            json!({"url": "https://example.com/", "secret": 4_711_331}),
        ),
    ] {
        let refused = server.post(path, body).await;
        refused.problem(422, "invalid_argument");
        let detail = refused.body["detail"].as_str().unwrap();
        assert!(detail.contains("expected") && !detail.contains("4711"), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_of_another_type_is_never_taken_for_a_mistake_in_the_json() {
    let server = Server::start().await;
    let document = read_document();
    let mut tried = 0;
    for (method, path, operation) in operations(&document) {
        let Some(media) = operation.pointer("/requestBody/content/application~1json") else {
            continue;
        };
        for field in fields(&document, &media["schema"], &[]) {
            for value in [
                json!(true),
                json!(1),
                json!(null),
                json!([]),
                json!({}),
                json!("no such"),
            ] {
                let mut body = media["example"].clone();
                put(&mut body, &field, &value);
                let answer = send(&server, &method, &path, Some(&body)).await;
                assert_ne!(
                    answer.body["code"], "malformed_body",
                    "{method} {path} {body}: {answer:?}"
                );
                let named = answer.body["field"].as_str().is_some_and(|field| !field.is_empty());
                assert!(
                    answer.body["code"] != "invalid_argument" || named,
                    "{method} {path} {body}: {answer:?}"
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 400, "{tried}");
    let check = format!("/v1/images/{UNKNOWN}/check");
    let told = server.post(&check, json!({"repair": true})).await;
    let told = told.problem(422, "invalid_argument");
    assert!(told.contains("`leaks`") && told.contains("`all`"), "{told}");
}
