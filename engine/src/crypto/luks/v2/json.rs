//! JSON as a header may hold it: no key twice, no deep nesting.
//!
//! A key that stands twice means one thing to one program and another to the next, which is how headers are forged.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Parses the text of a JSON area: one object, followed by NULs.
pub(super) fn parse(area: &[u8]) -> Result<Map<String, Value>> {
    let end = area.iter().position(|byte| *byte == 0).unwrap_or(area.len());
    let (text, rest) = area.split_at(end);
    if rest.is_empty() || rest.iter().any(|byte| *byte != 0) {
        return Err(Error::corrupt(
            "the JSON text of the LUKS2 header is not filled up with NULs",
        ));
    }
    let bad = |error: serde_json::Error| Error::corrupt("the LUKS2 header is no valid JSON").because(error);
    match serde_json::from_slice::<Strict>(text).map_err(bad)?.0 {
        Value::Object(map) => Ok(map),
        _ => Err(Error::corrupt("the JSON of the LUKS2 header is no object")),
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

/// Below this a floating number tells whole numbers apart.
const EXACT: f64 = 9_007_199_254_740_992.0;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without a key twice")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        // Whole numbers come here when they are larger than this program can keep, and would be written back as others.
        if value.abs() < EXACT {
            Ok(value.into())
        } else {
            Err(E::custom("a number with more digits than can be kept"))
        }
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Strict(value)) = seq.next_element()? {
            out.push(value);
        }
        Ok(Value::Array(out))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
            if out.insert(key, value).is_some() {
                return Err(A::Error::custom("a key stands twice"));
            }
        }
        Ok(Value::Object(out))
    }
}

/// The members of a JSON object, asked for by name and type. `what` names the object in messages.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    map: &'a Map<String, Value>,
    what: &'a str,
}

impl<'a> Object<'a> {
    pub(super) fn new(map: &'a Map<String, Value>, what: &'a str) -> Self {
        Self { map, what }
    }

    pub(super) fn of(value: &'a Value, what: &'a str) -> Result<Self> {
        let map = value
            .as_object()
            .ok_or_else(|| Error::corrupt(format!("LUKS2 {what} is no object")))?;
        Ok(Self { map, what })
    }

    fn need<T>(&self, name: &str, kind: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| Error::corrupt(format!("LUKS2 {} has no {kind} '{name}'", self.what)))
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name)
    }

    pub(super) fn object(&self, name: &'a str) -> Result<Object<'a>> {
        let map = self.need(name, "object", self.get(name).and_then(Value::as_object))?;
        Ok(Object { map, what: name })
    }

    /// The members of a numbered collection, such as `keyslots`.
    pub(super) fn numbered(&self) -> impl Iterator<Item = Result<(u32, &'a Value)>> {
        let what = self.what;
        self.map.iter().map(move |(key, value)| {
            let number =
                number_of(key).ok_or_else(|| Error::corrupt(format!("LUKS2 {what} has a name that is no number")))?;
            Ok((number, value))
        })
    }

    pub(super) fn text(&self, name: &str) -> Result<&'a str> {
        self.need(name, "text", self.get(name).and_then(Value::as_str))
    }

    pub(super) fn u32(&self, name: &str) -> Result<u32> {
        let found = self
            .get(name)
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok());
        self.need(name, "number", found)
    }

    /// A 64-bit number, which LUKS2 writes as text.
    pub(super) fn u64(&self, name: &str) -> Result<u64> {
        let found = self
            .get(name)
            .and_then(Value::as_str)
            .filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
        self.need(name, "number as text", found.and_then(|t| t.parse().ok()))
    }

    /// A list of texts.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<&'a str>> {
        let list = self.need(name, "list", self.get(name).and_then(Value::as_array))?;
        let texts = list.iter().map(Value::as_str).collect::<Option<Vec<_>>>();
        self.need(name, "list of texts", texts)
    }

    /// A list of numbers written as texts.
    pub(super) fn references(&self, name: &str) -> Result<Vec<u32>> {
        let texts = self.texts(name)?;
        let numbers = texts.iter().map(|text| number_of(text)).collect::<Option<Vec<_>>>();
        self.need(name, "list of numbers", numbers)
    }
}

fn number_of(text: &str) -> Option<u32> {
    text.parse()
        .ok()
        .filter(|number: &u32| number.to_string() == text && *number < 1 << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(text: &str) -> Vec<u8> {
        let mut area = text.as_bytes().to_vec();
        area.resize(text.len() + 8, 0);
        area
    }

    #[test]
    fn a_plain_object_is_read() {
        let map = parse(&area(r#"{"a":{"b":["1"]},"n":7,"t":true,"x":null}"#)).unwrap();
        let object = Object::new(&map, "test");
        assert_eq!(object.object("a").unwrap().references("b").unwrap(), [1]);
        assert_eq!(object.u32("n").unwrap(), 7);
    }

    #[test]
    fn what_others_wrote_is_written_back() {
        let text = r#"{"a":1.25,"b":[-0.5,{"c":18446744073709551615}],"d":-7}"#;
        assert_eq!(serde_json::to_string(&parse(&area(text)).unwrap()).unwrap(), text);
    }

    #[test]
    fn keys_twice_deep_nesting_and_junk_are_refused() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        for text in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":{"b":1,"b":1}}"#,
            &deep,
            "[]",
            "{",
            "",
            r#"{"a":18446744073709551616}"#,
            r#"{"a":-1e300}"#,
            "{} x",
        ] {
            assert!(parse(&area(text)).is_err(), "{}", &text[..text.len().min(20)]);
        }
        assert!(parse(b"{}").is_err());
        assert!(parse(b"{}\0x").is_err());
    }

    #[test]
    fn names_are_plain_numbers() {
        assert_eq!(number_of("0"), Some(0));
        for text in ["00", "+1", "-1", "65536", "x", ""] {
            assert_eq!(number_of(text), None, "{text}");
        }
    }
}
