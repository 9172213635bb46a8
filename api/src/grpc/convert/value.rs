use std::collections::{BTreeMap, HashMap};

use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use serde_json::Value;
use uuid::Uuid;
use vdisk_service::request::{PageRequest, SecretRefs};
use vdisk_service::{ServiceError, Timestamp};

use crate::proto;

/// A moment as a message.
pub fn timestamp(moment: Timestamp) -> Option<prost_types::Timestamp> {
    let nanos = i32::try_from(moment.0.rem_euclid(1000))
        .unwrap_or(0)
        .saturating_mul(1_000_000);
    Some(prost_types::Timestamp {
        seconds: moment.0.div_euclid(1000),
        nanos,
    })
}

/// A JSON object as a message; anything else is an empty one.
pub fn structure(value: Value) -> Struct {
    match value {
        Value::Object(fields) => Struct {
            fields: fields.into_iter().map(|(name, value)| (name, dynamic(value))).collect(),
        },
        _ => Struct::default(),
    }
}

/// Numbers become doubles. Whole ones that a double does not hold exactly become text, as 64-bit numbers do in protobuf's JSON.
fn dynamic(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(flag),
        Value::Number(number) if is_exact(&number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::Number(number) => Kind::StringValue(number.to_string()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(items) => Kind::ListValue(ListValue {
            values: items.into_iter().map(dynamic).collect(),
        }),
        object @ Value::Object(_) => Kind::StructValue(structure(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn is_exact(number: &serde_json::Number) -> bool {
    const LARGEST: u64 = 1 << 53;
    let whole = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
    whole.is_none_or(|whole| whole <= LARGEST)
}

/// Reads an id.
///
/// # Errors
/// `not_found`: what is no UUID belongs to nothing.
pub fn id_of(kind: &str, text: &str) -> Result<Uuid, ServiceError> {
    text.parse()
        .map_err(|_| ServiceError::not_found(kind, text.escape_debug()))
}

/// Reads an id that may be absent.
///
/// # Errors
/// As [`id_of`].
pub fn optional_id(kind: &str, text: Option<String>) -> Result<Option<Uuid>, ServiceError> {
    text.map(|text| id_of(kind, &text)).transpose()
}

/// Ids as text.
pub fn ids(ids: Vec<Uuid>) -> Vec<String> {
    ids.iter().map(Uuid::to_string).collect()
}

/// Reads secrets by the name that options refer to them by.
///
/// # Errors
/// `not_found` for an id that is no UUID.
pub fn secret_refs(secrets: HashMap<String, String>) -> Result<SecretRefs, ServiceError> {
    secrets
        .into_iter()
        .map(|(name, id)| Ok((name, id_of("secret", &id)?)))
        .collect()
}

/// A map in order of its keys.
pub fn sorted(map: HashMap<String, String>) -> BTreeMap<String, String> {
    map.into_iter().collect()
}

/// Reads a value of an enum.
///
/// # Errors
/// `invalid_argument` for a number that the enum does not have.
pub fn known<T: TryFrom<i32>>(field: &str, number: i32) -> Result<T, ServiceError> {
    T::try_from(number).map_err(|_| ServiceError::invalid(field, format!("{number} is no value of {field}")))
}

/// Takes what must be given.
///
/// # Errors
/// `invalid_argument`.
pub fn one_of<T>(field: &str, value: Option<T>) -> Result<T, ServiceError> {
    value.ok_or_else(|| ServiceError::invalid(field, format!("{field} must be given")))
}

/// Reads which part of a list is wanted.
pub fn page(page: Option<proto::PageRequest>) -> PageRequest {
    let page = page.unwrap_or_default();
    PageRequest {
        page_size: Some(page.page_size).filter(|size| *size > 0),
        page_token: Some(page.page_token).filter(|token| !token.is_empty()),
    }
}

/// The next page's token; empty on the last page.
pub fn token(token: Option<String>) -> String {
    token.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_that_a_double_does_not_hold_become_text() {
        let kinds = |value: Value| structure(value).fields.remove("n").and_then(|value| value.kind);
        let text = |text: &str| Some(Kind::StringValue(text.to_owned()));
        let cases = [
            (json!(0), Some(Kind::NumberValue(0.0))),
            (json!(-1.5), Some(Kind::NumberValue(-1.5))),
            (json!(1_u64 << 53), Some(Kind::NumberValue(9_007_199_254_740_992.0))),
            (json!((1_u64 << 53) + 1), text("9007199254740993")),
            (json!(-(1_i64 << 53) - 1), text("-9007199254740993")),
            (json!(u64::MAX), text("18446744073709551615")),
        ];
        for (number, expected) in cases {
            assert_eq!(kinds(json!({"n": number})), expected, "{number}");
        }
    }
}
