//! `json:{...}` names.

use serde_json::{Map, Value};

use super::Keys;
use crate::app::Failure;

/// The options in a `json:` name; `None` for any other name.
///
/// # Errors
/// Text that is no JSON object.
pub fn parse(name: &str) -> Result<Option<Keys>, Failure> {
    let Some(text) = name.strip_prefix("json:") else {
        return Ok(None);
    };
    let failed = |why: &str| Failure::new(format!("Could not parse the JSON options: {why}"));
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(object)) => Ok(Some(Keys::from_object(object))),
        Ok(_) => Err(Failure::new("Invalid JSON object given")),
        Err(e) if e.is_eof() => Err(failed("JSON parse error, premature EOI")),
        Err(_) => match single_quoted(text) {
            Some(object) => Ok(Some(Keys::from_object(object))),
            None => Err(failed("JSON parse error, invalid keyword or syntax")),
        },
    }
}

/// QEMU's dialect also has strings in single quotes.
fn single_quoted(text: &str) -> Option<Map<String, Value>> {
    let mut out = String::with_capacity(text.len() + 8);
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some('\''), '\\') => match chars.next()? {
                '\'' => out.push('\''),
                other => out.extend(['\\', other]),
            },
            (Some(_), '\\') => out.extend([c, chars.next()?]),
            (None, '\'' | '"') => {
                quote = Some(c);
                out.push('"');
            }
            (Some(q), c) if q == c => {
                quote = None;
                out.push('"');
            }
            (Some('\''), '"') => out.push_str("\\\""),
            _ => out.push(c),
        }
    }
    serde_json::from_str(&out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_quotes_are_read() {
        for name in [
            r#"json:{"file.filename": "a'b", "driver": "raw"}"#,
            r#"json:{'file.filename': 'a\'b', 'driver': 'raw'}"#,
        ] {
            let mut keys = parse(name).unwrap().unwrap();
            assert_eq!(keys.take("file.filename").as_deref(), Some("a'b"), "{name}");
            assert_eq!(keys.take("driver").as_deref(), Some("raw"));
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for name in ["json:", "json:{", "json:[1]", "json:{]", "json:{'a"] {
            assert!(parse(name).is_err(), "{name}");
        }
        assert_eq!(parse("a.qcow2").unwrap(), None);
    }
}
