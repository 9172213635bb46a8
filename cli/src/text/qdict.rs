//! JSON as QEMU's programs print it.
//!
//! QEMU keeps a JSON object in a table of 512 lists and prints list after list; which list a key goes to is told by the hash of
//! the TDB library. A list has its latest key first. Scripts that compare output as text rely on that order, so it is kept here.

use std::fmt::Write as _;

use serde_json::{Map, Value};

const BUCKETS: u32 = 512;

/// TDB's string hash.
fn hash(key: &str) -> u32 {
    let bytes = key.as_bytes();
    let start = 0x238F_13AF_u32.wrapping_mul(bytes.len() as u32);
    let sum = bytes.iter().enumerate().fold(start, |sum, (i, byte)| {
        sum.wrapping_add(u32::from(*byte) << ((i * 5) % 24))
    });
    sum.wrapping_mul(1_103_515_243).wrapping_add(12345)
}

/// The pairs of an object in the order in which QEMU prints them.
pub fn ordered(object: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut pairs: Vec<_> = object.iter().rev().collect();
    pairs.sort_by_key(|(key, _)| hash(key) % BUCKETS);
    pairs
}

/// Over several lines, indented by four spaces a level.
pub fn pretty(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value, Some(0));
    out
}

/// On one line, as in `json:{...}` file names.
pub fn line(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value, None);
    out
}

fn write_value(out: &mut String, value: &Value, depth: Option<usize>) {
    match value {
        Value::Object(object) => {
            let pairs = ordered(object);
            write_all(out, ('{', '}'), depth, &pairs, |out, (key, value), depth| {
                write_text(out, key);
                out.push_str(": ");
                write_value(out, value, depth);
            });
        }
        Value::Array(items) => write_all(out, ('[', ']'), depth, items, write_value),
        Value::String(text) => write_text(out, text),
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

fn write_all<T>(
    out: &mut String,
    (open, close): (char, char),
    depth: Option<usize>,
    items: &[T],
    write: impl Fn(&mut String, &T, Option<usize>),
) {
    out.push(open);
    let inner = depth.map(|d| d + 1);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(if depth.is_some() { "," } else { ", " });
        }
        new_line(out, inner);
        write(out, item, inner);
    }
    new_line(out, depth);
    out.push(close);
}

fn new_line(out: &mut String, depth: Option<usize>) {
    if let Some(depth) = depth {
        out.push('\n');
        out.extend(std::iter::repeat_n("    ", depth));
    }
}

/// A string literal in ASCII.
fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04X}");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    // The keys of `qemu-img info --output=json` of an overlay, as qemu-img prints them.
    #[test]
    fn keys_come_in_the_order_of_qemus_table() {
        let printed = [
            "children",
            "backing-filename-format",
            "virtual-size",
            "filename",
            "cluster-size",
            "format",
            "actual-size",
            "format-specific",
            "full-backing-filename",
            "backing-filename",
            "dirty-flag",
        ];
        let object: Map<_, _> = printed.iter().rev().map(|k| ((*k).to_owned(), Value::Null)).collect();
        let keys: Vec<_> = ordered(&object).into_iter().map(|(k, _)| k.as_str()).collect();
        assert_eq!(keys, printed);
    }

    #[test]
    fn empty_containers_take_two_lines_and_text_is_ascii() {
        let value = json!({"children": [], "filename": "a\u{e9}\"\u{1f600}"});
        assert_eq!(
            pretty(&value),
            "{\n    \"children\": [\n    ],\n    \"filename\": \"a\\u00E9\\\"\\uD83D\\uDE00\"\n}"
        );
        assert_eq!(line(&json!({"a": [], "b": {}})), "{\"a\": [], \"b\": {}}");
    }
}
