//! A tree of options as a flat list of dotted keys, as QEMU's block layer handles it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::app::Failure;

/// Dotted keys (`file.driver`) with their values. Keys are taken out as they are understood; what is left over was not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Keys(BTreeMap<String, Value>);

impl Keys {
    /// From the pairs of an option list; a later key wins.
    pub fn from_pairs(pairs: Vec<(String, String)>) -> Self {
        Self(pairs.into_iter().map(|(k, v)| (k, Value::String(v))).collect())
    }

    /// From a JSON object: nested objects and lists become dotted keys.
    pub fn from_object(object: Map<String, Value>) -> Self {
        let mut keys = Self::default();
        for (key, value) in object {
            keys.flatten(key, value);
        }
        keys
    }

    fn flatten(&mut self, key: String, value: Value) {
        match value {
            Value::Object(object) if !object.is_empty() => {
                for (name, value) in object {
                    self.flatten(format!("{key}.{name}"), value);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                for (i, value) in items.into_iter().enumerate() {
                    self.flatten(format!("{key}.{i}"), value);
                }
            }
            other => {
                self.0.insert(key, other);
            }
        }
    }

    /// Adds one unless it is there.
    pub fn add(&mut self, key: &str, value: impl Into<Value>) {
        self.0.entry(key.to_owned()).or_insert_with(|| value.into());
    }
    /// Adds all of `others` that are not there.
    pub fn add_all(&mut self, others: Keys) {
        for (key, value) in others.0 {
            self.0.entry(key).or_insert(value);
        }
    }
    /// Whether a key of exactly this name is there.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The first key that is left.
    pub fn first(&self) -> Option<&str> {
        self.0.keys().next().map(String::as_str)
    }
    /// What is left.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }
    /// The value of a key as it is.
    pub fn take_value(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key)
    }
    /// The value of a key as text.
    pub fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key).map(|v| text(&v))
    }
    /// A yes/no key.
    pub fn take_flag(&mut self, key: &str) -> Result<Option<bool>, Failure> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
            Some("off" | "no" | "false" | "n") => Ok(Some(false)),
            Some(_) => Err(Failure::new(format!("Parameter '{key}' expects 'on' or 'off'"))),
        }
    }
    /// The keys below `prefix.`, with the prefix cut off.
    pub fn take_below(&mut self, prefix: &str) -> Self {
        let dotted = format!("{prefix}.");
        let (below, rest) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(k, _)| k.starts_with(&dotted));
        self.0 = rest;
        let below: BTreeMap<String, Value> = below;
        Self(
            below
                .into_iter()
                .map(|(k, v)| (k[dotted.len()..].to_owned(), v))
                .collect(),
        )
    }
}

/// A value as the text that an option list would have.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_and_lists_become_dotted_keys() {
        let Value::Object(object) = json!({"driver": "raw", "file": {"driver": "file", "l": [1, {"x": true}]}}) else {
            unreachable!("an object was written above");
        };
        let mut keys = Keys::from_object(object);
        assert_eq!(keys.take("file.l.1.x").as_deref(), Some("on"));
        let mut file = keys.take_below("file");
        assert_eq!(
            (file.take("driver").as_deref(), file.take("l.0").as_deref()),
            (Some("file"), Some("1"))
        );
        assert_eq!(keys.first(), Some("driver"));
    }
}
