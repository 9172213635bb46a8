//! What the audit log learns of a request, once its outcome is known.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::HeaderMap;
use http_body_util::BodyExt;
use tonic::Code;
use tower_http::request_id::RequestId;
use vdisk_service::model::ANONYMOUS;
use vdisk_service::{Audited, Service};

use super::roles::Asked;
use crate::grpc;
use crate::http::observe::ID_CHARS;
use crate::state::App;

/// Requests of strangers that are noted in a minute: who knows no token must not push others out of the log.
const STRANGERS: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);
const TARGET_CHARS: usize = 256;

/// A request on its way to being noted.
pub struct Trail {
    /// What is known so far.
    pub entry: Audited,
    is_grpc: bool,
}

impl Trail {
    /// Starts with what the request says.
    pub fn of(request: &Request, asked: Asked) -> Self {
        let is_grpc = grpc::is_call(request);
        let id = request.extensions().get::<RequestId>();
        let path: String = request.uri().path().chars().take(TARGET_CHARS).collect();
        let entry = Audited {
            caller: ANONYMOUS.to_owned(),
            role: None,
            transport: if is_grpc { "grpc" } else { "http" },
            action: asked.action,
            target: if is_grpc { String::new() } else { path },
            outcome: String::new(),
            request_id: id
                .and_then(|id| id.header_value().to_str().ok())
                .map(|id| id.chars().take(ID_CHARS).collect()),
        };
        Self { entry, is_grpc }
    }
}

/// Counts the requests of strangers within a minute.
#[derive(Clone, Debug, Default)]
pub struct Strangers(Arc<Mutex<Option<(Instant, u32)>>>);

impl Strangers {
    fn another(&self, now: Instant) -> bool {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, count) = window
            .filter(|(began, _)| now.duration_since(*began) < MINUTE)
            .unwrap_or((now, 0));
        *window = Some((began, count.saturating_add(1)));
        count < STRANGERS
    }
}

/// Notes a request without a token that counts.
pub fn note_stranger(app: &App, mut trail: Trail) {
    if app.strangers.another(Instant::now()) {
        trail.entry.outcome = if trail.is_grpc { "Unauthenticated" } else { "401" }.to_owned();
        app.service.audit(trail.entry);
    }
}

/// Notes a request when its outcome is known: over HTTP now, over gRPC when its status is sent.
pub fn when_answered(app: &App, mut trail: Trail, response: Response) -> Response {
    if !trail.is_grpc
        || response
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind == "application/problem+json")
    {
        trail.entry.outcome = response.status().as_u16().to_string();
        app.service.audit(trail.entry);
        return response;
    }
    let mut pending = Pending {
        service: app.service.clone(),
        entry: Some(trail.entry),
        code: Code::Cancelled,
    };
    pending.see(response.headers());
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            if let Some(trailers) = frame.trailers_ref() {
                pending.see(trailers);
            }
            frame
        }))
    })
}

/// Noted when dropped: a call whose client went away counts as cancelled.
struct Pending {
    service: Service,
    entry: Option<Audited>,
    code: Code,
}

impl Pending {
    fn see(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.code = Code::from_bytes(status.as_bytes());
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(mut entry) = self.entry.take() {
            entry.outcome = format!("{:?}", self.code);
            self.service.audit(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_noted_sixty_times_a_minute() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        let noted = (0..1000).filter(|_| strangers.another(now)).count();
        assert_eq!(noted, 60);
        assert!(strangers.another(now + MINUTE));
    }
}
