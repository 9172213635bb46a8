//! The OpenAPI document: current, complete, and understood by a validator.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vdisk_api::http::document;

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi/openapi.json")
}

fn operations(document: &Value) -> Vec<(String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let each = |path: &String, item: &'_ Value| {
        let path = path.clone();
        item.as_object()
            .unwrap()
            .iter()
            .map(move |(method, _)| (method.clone(), path.clone()))
            .collect::<Vec<_>>()
    };
    let names = paths.iter().flat_map(|(path, item)| each(path, item));
    names
        .map(|(method, path)| (format!("{method} {path}"), &document["paths"][&path][&method]))
        .collect()
}

/// `VDISK_UPDATE=1` rewrites the committed document.
#[test]
fn generated_document_is_committed() {
    if std::env::var_os("VDISK_UPDATE").is_some() {
        std::fs::write(committed(), document::json()).unwrap();
    }
    let found = std::fs::read_to_string(committed()).unwrap_or_default();
    assert!(
        found == document::json(),
        "openapi/openapi.json is stale: run `cargo run -- openapi > openapi/openapi.json`"
    );
}

/// A generator of TypeScript clients takes a field with a default for one that is always there.
#[test]
fn fields_of_requests_have_no_default() {
    let document: Value = serde_json::from_str(document::json()).unwrap();
    for (name, operation) in operations(&document) {
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
        let Some(place) = schema.as_str().map(|name| name.trim_start_matches('#')) else {
            continue;
        };
        let properties = document
            .pointer(&format!("{place}/properties"))
            .and_then(Value::as_object);
        for (field, property) in properties.into_iter().flatten() {
            assert!(property.get("default").is_none(), "{name}: {field}");
        }
    }
}

#[test]
fn every_operation_has_id_summary_examples_and_errors() {
    let document: Value = serde_json::from_str(document::json()).unwrap();
    let operations = operations(&document);
    assert!(operations.len() > 35, "{}", operations.len());
    let mut ids = BTreeSet::new();
    for (name, operation) in &operations {
        let id = operation["operationId"]
            .as_str()
            .unwrap_or_else(|| panic!("{name} has no operationId"));
        assert!(ids.insert(id.to_owned()), "{id} is there twice");
        assert!(
            operation["summary"].as_str().is_some_and(|text| text.ends_with('.')),
            "{name} has no summary"
        );
        let responses = operation["responses"].as_object().unwrap();
        assert!(
            responses.keys().any(|status| status.starts_with('5')),
            "{name} documents no error"
        );
        let bodies = responses.iter().map(|(status, response)| (status.as_str(), response));
        for (place, body) in bodies.chain([("request", &operation["requestBody"])]) {
            for (kind, media) in body["content"].as_object().into_iter().flatten() {
                let bytes = ["application/octet-stream", "multipart/byteranges"].contains(&kind.as_str());
                assert!(
                    bytes || media.get("example").is_some(),
                    "{name} {place} {kind} has no example"
                );
            }
        }
    }
}

#[test]
fn every_post_takes_an_idempotency_key() {
    let document: Value = serde_json::from_str(document::json()).unwrap();
    for (name, operation) in operations(&document)
        .iter()
        .filter(|(name, _)| name.starts_with("post"))
    {
        let parameters = operation["parameters"].as_array().unwrap();
        assert!(
            parameters
                .iter()
                .any(|parameter| parameter["name"] == "Idempotency-Key"),
            "{name}"
        );
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document: Value = serde_json::from_str(document::json()).unwrap();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for reference in found {
        assert!(
            document.pointer(reference.trim_start_matches('#')).is_some(),
            "{reference}"
        );
    }
}
