//! The problems an operation can answer with, documented from the error table.

use std::collections::BTreeMap;

use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::{Ref, RefOr};
use vdisk_service::ErrorCode;

use super::problem::{PROBLEM_JSON, Problem};
use crate::errors::{Row, TransportCode, row};

/// Names a type whose responses are these codes, plus those that every operation may give.
macro_rules! problems {
    ($name:ident: $($code:ident),* $(; $($transport:ident),*)?) => {
        struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses()
            -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::response::Response>> {
                $crate::http::documented::responses(
                    &[$(vdisk_service::ErrorCode::$code),*],
                    &[$($($crate::errors::TransportCode::$transport),*)?],
                )
            }
        }
    };
}
pub(crate) use problems;

/// One response a status, each with the codes it may carry and an example.
pub fn responses(codes: &[ErrorCode], transport: &[TransportCode]) -> BTreeMap<String, RefOr<Response>> {
    let common = [ErrorCode::Internal, ErrorCode::Unavailable];
    let rows = codes
        .iter()
        .chain(&common)
        .map(|code| row(*code))
        .chain(transport.iter().map(|code| code.row()));
    let mut statuses: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in rows {
        statuses.entry(row.status.as_str().to_owned()).or_default().push(row);
    }
    statuses
        .into_iter()
        .map(|(status, rows)| (status, response(&rows).into()))
        .collect()
}

fn response(rows: &[Row]) -> Response {
    let codes: Vec<_> = rows
        .iter()
        .map(|row| format!("`{}` ({})", row.code, row.title))
        .collect();
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem")));
    let content = match rows.first() {
        Some(row) => content.example(serde_json::to_value(Problem::example(*row)).ok()),
        None => content,
    };
    ResponseBuilder::new()
        .description(codes.join(", "))
        .content(PROBLEM_JSON, content.build())
        .build()
}
