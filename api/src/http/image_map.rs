use std::num::NonZeroU32;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, header};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::model::{Extent, MapPage};
use vdisk_service::request::{MapLayer, MapRequest};
use vdisk_service::{ExtentStream, Service, ServiceError};

use super::documented::problems;
use super::extract::{ImagePath, Query, prefers};
use super::problem::Answer;
use crate::access::untaken::not_ignored;
use crate::state::App;

/// Media type of a stream of JSON values, one a line.
const NDJSON: &str = "application/x-ndjson";

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(get_image_map))
}

problems!(MapProblems: NotFound, InvalidArgument, ImageNotReady, ImageBusy, CorruptImage, BaseChanged);

/// Which part of a map.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MapQuery {
    /// First guest byte; 0 when absent.
    start: Option<u64>,
    /// Bytes; to the end when absent.
    length: Option<u64>,
    /// Extents in a page; ends a stream early.
    #[param(value_type = Option<u32>, minimum = 1)]
    limit: Option<NonZeroU32>,
    /// `next_cursor` of the page before; replaces `start`. Refused when the image has changed in between.
    cursor: Option<String>,
    /// Which layers answer: the whole chain, or the image itself.
    #[param(inline)]
    layer: MapLayer,
}

impl From<MapQuery> for MapRequest {
    fn from(query: MapQuery) -> Self {
        let MapQuery {
            start,
            length,
            limit,
            cursor,
            layer,
        } = query;
        Self {
            start,
            length,
            limit: limit.map(NonZeroU32::get),
            cursor,
            layer,
        }
    }
}

/// Get where the image's data lies.
///
/// Extents in guest order: which layer answers, whether it is present, zero, data or compressed, and where the bytes lie.
/// As pages of JSON, which end early where they take long, or with `Accept: application/x-ndjson` as a stream of one extent a line.
#[utoipa::path(get, path = "/v1/images/{id}/map", operation_id = "get_image_map", tag = "images",
    params(ImagePath, MapQuery),
    responses((status = 200, description = "Extents in guest order.",
        content((MapPage = "application/json"), (String = "application/x-ndjson"))), MapProblems))]
async fn get_image_map(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    Query(query): Query<MapQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let request = query.into();
    if prefers(&headers, NDJSON, "application/json") {
        return Ok(lines(service.image_map_stream(id, &request).await?));
    }
    Ok(Json(service.image_map(id, &request).await?).into_response())
}

/// Extents are put together into writes of some size. An error breaks the body off, which the client sees.
fn lines(extents: ExtentStream) -> Response {
    let chunks = extents.ready_chunks(512).map(|chunk| {
        let lines: Result<Vec<Vec<u8>>, ServiceError> = chunk.into_iter().map(|extent| line(&extent?)).collect();
        lines.map(|lines| Bytes::from(lines.concat()))
    });
    let body = not_ignored(chunks.boxed()).inspect_err(|error| tracing::warn!(%error, "a map broke off"));
    ([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(body)).into_response()
}

fn line(extent: &Extent) -> Result<Vec<u8>, ServiceError> {
    let mut line = serde_json::to_vec(extent).map_err(ServiceError::internal)?;
    line.push(b'\n');
    Ok(line)
}
