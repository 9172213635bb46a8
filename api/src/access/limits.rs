//! Bounds on what one request may cost before a handler sees it.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use futures::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vdisk_service::{Bytes, ErrorCode, ServiceError};

use super::refusal;
use crate::errors::TransportCode;
use crate::grpc;

/// Bytes of a request's path and query.
pub const TARGET_BYTES: usize = 8 << 10;
/// Bytes of all of a request's header fields, names and values.
pub const HEADER_BYTES: usize = 32 << 10;
/// Seconds that a JSON body may take to arrive.
pub const BODY_TIME: Duration = Duration::from_secs(30);
/// How long an upload may pause between two pieces.
pub const UPLOAD_PAUSE: Duration = Duration::from_secs(60);
/// Watchers of events, and waits for jobs, that are open at the same time.
pub const WATCHERS: usize = 1024;
/// Connections that are open at the same time.
pub const CONNECTIONS: usize = 4096;

/// Refuses heads that are larger than any client needs.
pub async fn head_in_bounds(request: Request, next: Next) -> Response {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if target > TARGET_BYTES {
        let detail = format!("a path with its query has at most {TARGET_BYTES} bytes");
        return refusal(grpc::is_call(&request), TransportCode::TargetTooLong, detail);
    }
    let fields = request.headers().iter();
    let bytes: usize = fields
        .map(|(name, value)| name.as_str().len().saturating_add(value.len()))
        .sum();
    if bytes > HEADER_BYTES {
        let detail = format!("the header fields have at most {HEADER_BYTES} bytes together");
        return refusal(grpc::is_call(&request), TransportCode::HeadersTooLarge, detail);
    }
    next.run(request).await
}

/// A body that breaks off when its client falls silent.
pub fn not_idle<S, E>(body: S) -> impl Stream<Item = Result<Bytes, String>> + Send + Unpin
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
    E: Display + Send,
{
    not_idle_for(UPLOAD_PAUSE, body)
}

fn not_idle_for<S, E>(pause: Duration, body: S) -> impl Stream<Item = Result<Bytes, String>> + Send + Unpin
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
    E: Display + Send,
{
    let pieces = futures::stream::unfold((body, false), move |(mut body, over)| async move {
        if over {
            return None;
        }
        match tokio::time::timeout(pause, body.next()).await {
            Ok(piece) => piece.map(|piece| (piece.map_err(|error| error.to_string()), (body, false))),
            Err(_) => {
                let silent = format!("nothing came for {} seconds", pause.as_secs_f32());
                Some((Err(silent), (body, true)))
            }
        }
    });
    // Readers ask once more after the end.
    Box::pin(pieces.fuse())
}

/// Places for those who watch or wait.
#[derive(Clone, Debug)]
pub struct Watchers(Arc<Semaphore>);

impl Default for Watchers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WATCHERS)))
    }
}

impl Watchers {
    /// Takes a place for as long as the permit lives.
    ///
    /// # Errors
    /// `unavailable` when all are taken.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, ServiceError> {
        let full = |_| {
            ServiceError::new(
                ErrorCode::Unavailable,
                "too many clients watch or wait; try again later",
            )
        };
        self.0.clone().try_acquire_owned().map_err(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_body_breaks_off() {
        let first = futures::stream::iter([Ok::<_, String>(Bytes::from_static(b"a"))]);
        let mut body = not_idle_for(
            Duration::from_millis(20),
            Box::pin(first.chain(futures::stream::pending())),
        );
        assert_eq!(body.next().await, Some(Ok(Bytes::from_static(b"a"))));
        assert!(body.next().await.unwrap().unwrap_err().contains("0.02 seconds"));
        assert_eq!(body.next().await, None);
        assert_eq!(body.next().await, None, "asked again after the end");
    }

    #[test]
    fn places_for_watchers_are_given_back() {
        let watchers = Watchers(Arc::new(Semaphore::new(1)));
        let place = watchers.enter().unwrap();
        assert_eq!(watchers.enter().unwrap_err().code, ErrorCode::Unavailable);
        drop(place);
        assert!(watchers.enter().is_ok());
    }
}
