//! The OpenAPI document: put together from the handlers, then given examples.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApiBuilder};
use utoipa::{IntoResponses, ToSchema};
use vdisk_service::model::Event;

use super::declared::is_strict;
use super::documented::problems;
use super::problem::Problem;
use super::{api, documented, examples};
use crate::access::roles;
use crate::errors::TransportCode;
use crate::metrics::{OPENMETRICS, PROMETHEUS_TEXT};

const TAGS: [(&str, &str); 10] = [
    ("images", "Records of images, and how they are built."),
    ("content", "The bytes of images."),
    ("verbs", "Long work on images, as jobs."),
    ("snapshots", "Internal snapshots."),
    ("jobs", "How far long work is, and how it ended."),
    ("pools", "Folders that hold images."),
    ("formats", "What the engine can read and write."),
    ("secrets", "Passphrases and keys, given once."),
    ("access", "Tokens, and who did what."),
    ("system", "Health and metrics."),
];

/// What stands in the document besides the operations.
pub fn base() -> OpenApi {
    let info = InfoBuilder::new()
        .title("vdiskd")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(include_str!("document.md")))
        .license(Some(
            LicenseBuilder::new()
                .name("Apache-2.0")
                .identifier(Some("Apache-2.0"))
                .build(),
        ));
    let tags = TAGS.map(|(name, text)| TagBuilder::new().name(name).description(Some(text)).build());
    // Nothing refers to these in a way that would bring them in.
    let components = ComponentsBuilder::new().schema_from::<Problem>().schema_from::<Event>();
    let mut schemas = Vec::new();
    Event::schemas(&mut schemas);
    let components = components.schemas_from_iter(schemas).build();
    OpenApiBuilder::new()
        .info(info)
        .tags(Some(tags))
        .components(Some(components))
        .build()
}

/// The document as JSON text, ending with a newline.
pub fn json() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let (_, openapi) = api().split_for_parts();
        let mut document = serde_json::to_value(openapi).unwrap_or_default();
        document["components"]["securitySchemes"] =
            json!({"token": {"type": "http", "scheme": "bearer", "description": "A token of `POST /v1/tokens`."}});
        add_refusals(&mut document);
        add_strictness(&mut document);
        add_dry_run(&mut document);
        drop_defaults(&mut document);
        for operation in operations(&mut document) {
            optional_body(operation);
            add_examples(operation);
        }
        widen(&mut document);
        format!("{document:#}\n")
    })
}

/// Whole numbers without a sign are documented as `int32` by default, which takes less than they do.
fn widen(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let unsigned = fields.get("minimum").and_then(Value::as_u64).is_some();
            if unsigned && fields.get("format").is_some_and(|format| format == "int32") {
                fields.insert("format".to_owned(), json!("int64"));
                fields.entry("maximum").or_insert(json!(u32::MAX));
            }
            fields.values_mut().for_each(widen);
        }
        Value::Array(items) => items.iter_mut().for_each(widen),
        _ => {}
    }
}

/// Says of each operation which role it takes, and how it refuses who has none or a smaller one.
fn add_refusals(document: &mut Value) {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    for (path, item) in paths.into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let Some(role) = roles::needed(method, path) else {
                continue;
            };
            // Without a token only where the operator serves such requests.
            operation["security"] = json!([{"token": []}, {}]);
            operation["x-role"] = json!(role.as_str());
            let refusals = documented::responses(&[], &[TransportCode::Unauthenticated, TransportCode::Forbidden]);
            for status in ["401", "403"] {
                let refusal = refusals
                    .get(status)
                    .and_then(|response| serde_json::to_value(response).ok());
                let responses = operation.get_mut("responses").and_then(Value::as_object_mut);
                if let (Some(refusal), Some(responses)) = (refusal, responses) {
                    responses.entry(status).or_insert(refusal);
                }
            }
        }
    }
}

problems!(StrangeQuery: InvalidArgument);
problems!(StrangeBody: InvalidArgument; MalformedBody, BodyTooLarge);

/// Says of each operation how it refuses what it does not take (`declared`).
fn add_strictness(document: &mut Value) {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    let strict = paths.into_iter().flatten().filter(|(path, _)| is_strict(path));
    let items = strict.map(|(_, item)| item);
    for (method, operation) in items.filter_map(Value::as_object_mut).flatten() {
        let refusals = match method == "get" || operation.get("requestBody").is_some() {
            true => StrangeQuery::responses(),
            false => StrangeBody::responses(),
        };
        if let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) {
            for (status, refusal) in refusals {
                add_response(responses, status, json!(refusal));
            }
        }
    }
}

/// A status that is documented already may have this reason too.
fn add_response(responses: &mut Map<String, Value>, status: String, response: Value) {
    let Some(known) = responses.get_mut(&status) else {
        responses.insert(status, response);
        return;
    };
    let texts = (known["description"].as_str(), response["description"].as_str());
    if let (Some(said), Some(reason)) = texts
        && !said.contains(reason)
    {
        known["description"] = json!(format!("{said}, {reason}"));
    }
}

/// A request that leads to a job may ask first what the job would do.
fn add_dry_run(document: &mut Value) {
    let field = json!({"type": ["boolean", "null"],
        "description": "Only say what the job would do: the answer is 200 with a plan, and nothing is queued or changed."});
    let planned = |operation: &&mut Map<String, Value>| {
        let plan = "/200/content/application~1json/schema/$ref";
        let plan = operation.get("responses").and_then(|responses| responses.pointer(plan));
        plan.and_then(Value::as_str)
            .is_some_and(|name| name.ends_with("/JobPlan"))
    };
    let requests: Vec<String> = operations(document)
        .filter(planned)
        .filter_map(|operation| request_schema(operation))
        .collect();
    for pointer in requests {
        let schema = document.pointer_mut(&format!("{pointer}/properties"));
        if let Some(properties) = schema.and_then(Value::as_object_mut) {
            properties.insert("dry_run".to_owned(), field.clone());
        }
    }
}

/// Generators of clients take a field with a default for one that is always there, which a request need not have: the default goes into
/// its description.
fn drop_defaults(document: &mut Value) {
    let requests: Vec<String> = operations(document)
        .filter_map(|operation| request_schema(operation))
        .collect();
    for pointer in requests {
        let properties = document.pointer_mut(&format!("{pointer}/properties"));
        for property in properties
            .and_then(Value::as_object_mut)
            .into_iter()
            .flat_map(Map::values_mut)
        {
            let default = property.as_object_mut().and_then(|fields| fields.remove("default"));
            if let Some(Value::String(default)) = default {
                let said = property["description"].as_str().unwrap_or_default();
                property["description"] = json!(format!("{said} `{default}` where it is left out."));
            }
        }
    }
}

/// Where the schema of an operation's body stands in the document.
fn request_schema(operation: &Map<String, Value>) -> Option<String> {
    let schema = operation
        .get("requestBody")?
        .pointer("/content/application~1json/schema")?;
    let named = schema.get("$ref").or_else(|| {
        schema
            .get("oneOf")?
            .as_array()?
            .iter()
            .find_map(|choice| choice.get("$ref"))
    });
    named
        .and_then(Value::as_str)
        .map(|name| name.trim_start_matches('#').to_owned())
}

fn operations(document: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    let items = paths
        .into_iter()
        .flat_map(Map::values_mut)
        .filter_map(Value::as_object_mut);
    items.flat_map(Map::values_mut).filter_map(Value::as_object_mut)
}

/// A body that may be left out is the plain schema, not required: "this or null" is more than any client needs.
fn optional_body(operation: &mut Map<String, Value>) {
    let Some(body) = operation.get_mut("requestBody") else {
        return;
    };
    let place = "/content/application~1json/schema";
    let plain = body
        .pointer(&format!("{place}/oneOf"))
        .and_then(Value::as_array)
        .and_then(|choices| choices.iter().find(|choice| choice.get("$ref").is_some()).cloned());
    if let (Some(plain), Some(schema)) = (plain, body.pointer_mut(place)) {
        *schema = plain;
        body["required"] = json!(false);
    }
}

/// Gives every body that has none the example of its schema.
fn add_examples(operation: &mut Map<String, Value>) {
    let bodies = operation.get_mut("requestBody").into_iter();
    for media in bodies.filter_map(content) {
        add_each(media);
    }
    let responses = operation.get_mut("responses").and_then(Value::as_object_mut);
    for media in responses.into_iter().flat_map(Map::values_mut).filter_map(content) {
        add_each(media);
    }
}

fn content(body: &mut Value) -> Option<&mut Value> {
    body.get_mut("content")
}

fn add_each(content: &mut Value) {
    for (kind, media) in content.as_object_mut().into_iter().flatten() {
        add_example(kind, media);
    }
}

fn add_example(kind: &str, media: &mut Value) {
    let name = media
        .pointer("/schema/$ref")
        .and_then(Value::as_str)
        .and_then(|path| path.rsplit('/').next());
    let example = match (kind, name) {
        ("application/json", Some(name)) => examples::of(name),
        ("application/x-ndjson", _) => examples::of("Extent").map(|extent| json!(format!("{extent}\n"))),
        ("text/event-stream", _) => Some(json!(examples::EVENT_STREAM)),
        (PROMETHEUS_TEXT, _) => Some(json!("vdisk_images{state=\"ready\"} 3\n")),
        (OPENMETRICS, _) => Some(json!("vdisk_images{state=\"ready\"} 3\n# EOF\n")),
        _ => None,
    };
    if let (Some(example), Some(media)) = (example, media.as_object_mut()) {
        media.entry("example").or_insert(example);
    }
}
