//! Server-sent events, resumed by their ids.

use std::pin::Pin;

use axum::extract::State;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;
use vdisk_service::ServiceError;
use vdisk_service::model::Event;
use vdisk_service::request::EventFilter;

use super::documented::problems;
use super::extract::{JobPath, Query};
use super::problem::Answer;
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(watch_events))
        .routes(routes!(watch_job))
}

problems!(WatchProblems: NotFound, InvalidArgument);

/// Which events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventQuery {
    /// Only those of this image.
    image: Option<Uuid>,
    /// Start behind this event, for clients that cannot set `Last-Event-ID`.
    after: Option<u64>,
}

/// Where a job's events start.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct JobEventQuery {
    /// Start behind this event, for clients that cannot set `Last-Event-ID`.
    after: Option<u64>,
}

/// Watch job and image events.
///
/// Server-sent events as they happen, each with an id; `Last-Event-ID` goes on behind that one. The data of each is an
/// `Event` as JSON.
#[utoipa::path(get, path = "/v1/events", operation_id = "watch_events", tag = "jobs",
    params(EventQuery, ("Last-Event-ID" = Option<u64>, Header, description = "Id of the last event seen.")),
    responses((status = 200, description = "Events.", body = String, content_type = "text/event-stream"),
        WatchProblems))]
async fn watch_events(State(app): State<App>, Query(query): Query<EventQuery>, headers: HeaderMap) -> Answer<Response> {
    let filter = EventFilter {
        job: None,
        image: query.image,
    };
    let place = app.watchers.enter()?;
    let events = app
        .service
        .subscribe(filter, last_event(&headers, query.after)?)
        .await?;
    Ok(sent_as_they_come(&app, place, events))
}

/// Watch one job.
///
/// Starts with all of the job's events, and ends after its last. Who has seen that one gets 204, which tells an `EventSource` to stop.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", operation_id = "watch_job", tag = "jobs",
    params(JobPath, JobEventQuery,
        ("Last-Event-ID" = Option<u64>, Header, description = "Id of the last event seen.")),
    responses((status = 200, description = "Events.", body = String, content_type = "text/event-stream"),
        (status = 204, description = "The job has ended and nothing came behind that event: a client need not come again."),
        WatchProblems))]
async fn watch_job(
    State(app): State<App>,
    JobPath(id): JobPath,
    Query(query): Query<JobEventQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let filter = EventFilter {
        job: Some(id),
        image: None,
    };
    let after = last_event(&headers, query.after)?;
    let place = app.watchers.enter()?;
    let mut events = app.service.subscribe(filter, after).await?.peekable();
    let is_over = after.is_some() && app.service.job(id).await?.is_finished();
    // The events of a job that has ended are all there: nothing is waited for.
    if is_over && Pin::new(&mut events).peek().await.is_none() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(sent_as_they_come(&app, place, events))
}

fn sent_as_they_come(
    app: &App,
    place: OwnedSemaphorePermit,
    events: impl Stream<Item = Result<Event, ServiceError>> + Send + 'static,
) -> Response {
    let stream = events
        .map(move |event| {
            let _stays_taken = &place;
            sent(&event?)
        })
        .take_until(app.stopping.clone().cancelled_owned());
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
}

fn sent(event: &Event) -> Result<SseEvent, ServiceError> {
    let sent = SseEvent::default().id(event.seq.to_string()).event(event.kind.as_str());
    sent.json_data(event).map_err(ServiceError::internal)
}

fn last_event(headers: &HeaderMap, after: Option<u64>) -> Answer<Option<u64>> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(after);
    };
    let seq = value.to_str().ok().and_then(|text| text.parse().ok());
    let unreadable = || ServiceError::invalid("Last-Event-ID", "expected the number that an event came with");
    Ok(Some(seq.ok_or_else(unreadable)?))
}
