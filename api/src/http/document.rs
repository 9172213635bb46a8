//! The OpenAPI document: put together from the handlers, then given examples.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;
use utoipa::openapi::{InfoBuilder, LicenseBuilder, OpenApiBuilder, tag::TagBuilder};

use super::{api, examples};

const TAGS: [(&str, &str); 9] = [
    ("images", "Records of images, and how they are built."),
    ("content", "The bytes of images."),
    ("verbs", "Long work on images, as jobs."),
    ("snapshots", "Internal snapshots."),
    ("jobs", "How far long work is, and how it ended."),
    ("pools", "Folders that hold images."),
    ("formats", "What the engine can read and write."),
    ("secrets", "Passphrases and keys, given once."),
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
    OpenApiBuilder::new().info(info).tags(Some(tags)).build()
}

/// The document as JSON text, ending with a newline.
pub fn json() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let (_, openapi) = api().split_for_parts();
        let mut document = serde_json::to_value(openapi).unwrap_or_default();
        add_examples(&mut document);
        format!("{document:#}\n")
    })
}

/// Gives every JSON body that has none the example of its schema.
fn add_examples(document: &mut Value) {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    for operation in paths
        .into_iter()
        .flat_map(Map::values_mut)
        .filter_map(Value::as_object_mut)
        .flat_map(Map::values_mut)
    {
        let responses = operation.get("responses").and_then(Value::as_object);
        let statuses: Vec<_> = responses
            .into_iter()
            .flat_map(Map::keys)
            .map(|status| format!("/responses/{status}"))
            .collect();
        for place in statuses.iter().map(String::as_str).chain(["/requestBody"]) {
            if let Some(content) = operation
                .pointer_mut(&format!("{place}/content"))
                .and_then(Value::as_object_mut)
            {
                content.iter_mut().for_each(|(kind, media)| add_example(kind, media));
            }
        }
    }
}

fn add_example(kind: &str, media: &mut Value) {
    let reference = media
        .pointer("/schema/$ref")
        .or_else(|| media.pointer("/schema/oneOf/1/$ref"));
    let name = reference
        .and_then(Value::as_str)
        .and_then(|path| path.rsplit('/').next());
    let example = match (kind, name) {
        ("application/json", Some(name)) => examples::of(name),
        ("application/x-ndjson", _) => examples::of("Extent").map(|extent| json!(format!("{extent}\n"))),
        ("text/event-stream", _) => Some(json!(examples::EVENT_STREAM)),
        ("text/plain", _) => Some(json!("vdisk_images{state=\"ready\"} 3\n")),
        _ => None,
    };
    if let (Some(example), Some(media)) = (example, media.as_object_mut()) {
        media.entry("example").or_insert(example);
    }
}
