//! Measures a gRPC call until its status is sent, be it in the head or in the trailers.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use http::HeaderMap;
use http_body_util::BodyExt;
use prost::Message;
use tonic::Code;
use tracing::Span;

use crate::metrics::Metrics;
use crate::proto;

/// Paths of the calls that exist: what others ask for is counted together, so that it cannot fill the memory.
static METHODS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let descriptors = prost_types::FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap_or_default();
    let files = descriptors.file.into_iter();
    let services = files.flat_map(|file| {
        file.service
            .into_iter()
            .map(move |service| (file.package.clone(), service))
    });
    let paths = services.flat_map(|(package, service)| {
        let prefix = format!("/{}.{}/", package.unwrap_or_default(), service.name.unwrap_or_default());
        service
            .method
            .into_iter()
            .map(move |method| format!("{prefix}{}", method.name.unwrap_or_default()))
    });
    paths.collect()
});

/// Records the call when its status is known; a call whose client went away counts as cancelled.
pub fn until_status(metrics: Arc<Metrics>, path: &str, started: Instant, span: Span, response: Response) -> Response {
    let method = if METHODS.contains(path) { path } else { "other" };
    let mut record = Record {
        metrics,
        method: method.to_owned(),
        started,
        span,
        code: None,
    };
    record.see(response.headers());
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            if let Some(trailers) = frame.trailers_ref() {
                record.see(trailers);
            }
            frame
        }))
    })
}

struct Record {
    metrics: Arc<Metrics>,
    method: String,
    started: Instant,
    span: Span,
    code: Option<Code>,
}

impl Record {
    fn see(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let (code, took) = (self.code.unwrap_or(Code::Cancelled), self.started.elapsed());
        self.metrics.grpc_ended(&self.method, code, took);
        self.span
            .in_scope(|| tracing::info!(?code, took_ms = took.as_secs_f64() * 1e3, "answered"));
    }
}
