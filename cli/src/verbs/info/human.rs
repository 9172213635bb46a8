//! The facts for people.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use vdisk_engine::ops::info::Child;

use super::Facts;
use crate::text::{qdict, size, table};

/// The lines of one image.
pub fn print(facts: &Facts) -> String {
    let image = &facts.image;
    let mut out = String::new();
    let _ = writeln!(out, "image: {}", facts.filename);
    let _ = writeln!(out, "file format: {}", facts.bare.as_deref().unwrap_or(image.format));
    let _ = writeln!(out, "virtual size: {}", both(image.virtual_size));
    let _ = writeln!(out, "disk size: {}", space(image.actual_size));
    if image.image.encrypted {
        out.push_str("encrypted: yes\n");
    }
    if let Some(bytes) = image.image.cluster_size {
        let _ = writeln!(out, "cluster_size: {bytes}");
    }
    if image.image.dirty == Some(true) {
        out.push_str("cleanly shut down: no\n");
    }
    backing(&mut out, facts);
    if !image.image.snapshots.is_empty() {
        out.push_str(&table::snapshots(&image.image.snapshots, ""));
    }
    if let Some(specific) = image.image.specific.as_ref().filter(|s| !s.is_empty()) {
        out.push_str("Format specific information:\n");
        object(&mut out, specific, 1);
    }
    for child in &facts.children {
        print_child(&mut out, child);
    }
    out
}

fn backing(out: &mut String, facts: &Facts) {
    let Some(backing) = &facts.image.backing else { return };
    let _ = write!(out, "backing file: {}", backing.name);
    match &facts.full_backing {
        None => out.push_str(" (cannot determine actual path)"),
        Some(full) if *full != backing.name => {
            let _ = write!(out, " (actual path: {full})");
        }
        Some(_) => {}
    }
    out.push('\n');
    if let Some(format) = &backing.format {
        let _ = writeln!(out, "backing file format: {format}");
    }
}

fn both(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", size::human(bytes))
}

fn space(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unavailable".to_owned(), size::human)
}

fn print_child(out: &mut String, child: &Child) {
    let _ = writeln!(out, "Child node '/{}':", child.name);
    let _ = writeln!(out, "    filename: {}", child.filename);
    let _ = writeln!(out, "    protocol type: {}", child.protocol);
    let _ = writeln!(out, "    file length: {}", both(child.len));
    let _ = writeln!(out, "    disk size: {}", space(child.allocated));
}

fn object(out: &mut String, object: &Map<String, Value>, depth: usize) {
    for (key, value) in qdict::ordered(object) {
        entry(out, &key.replace('-', " "), value, depth);
    }
}

fn entry(out: &mut String, label: &str, value: &Value, depth: usize) {
    out.extend(std::iter::repeat_n("    ", depth));
    let _ = match value {
        Value::Object(inner) => {
            let _ = writeln!(out, "{label}:");
            object(out, inner, depth + 1);
            Ok(())
        }
        Value::Array(items) => {
            let _ = writeln!(out, "{label}:");
            for (i, item) in items.iter().enumerate() {
                entry(out, &format!("[{i}]"), item, depth + 1);
            }
            Ok(())
        }
        Value::String(text) => writeln!(out, "{label}: {text}"),
        other => writeln!(out, "{label}: {other}"),
    };
}
