//! Bodies made piece by piece as they are asked for: memory stays bounded, a client that takes nothing keeps no thread,
//! and one that goes away ends the work.

use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::locks::RequestLocks;
use crate::error::{ErrorCode, Result, ServiceError};

/// Bodies that are open at the same time. Each may be about to read, on a thread of those that jobs and requests need too.
pub(super) const BODIES: usize = 256;

/// A place among the open bodies.
///
/// # Errors
/// `unavailable` when all are taken.
pub(super) fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    let full = |_| {
        let public = "too many downloads and maps are under way; try again later";
        ServiceError::new(ErrorCode::Unavailable, public)
    };
    places.clone().try_acquire_owned().map_err(full)
}

/// What a body keeps until it is through; several may share it.
#[derive(Clone)]
pub(super) struct Hold(Arc<Held>);

struct Held {
    locks: Option<RequestLocks>,
    _place: OwnedSemaphorePermit,
}

impl Hold {
    pub(super) fn new(place: OwnedSemaphorePermit, locks: Option<RequestLocks>) -> Self {
        Self(Arc::new(Held { locks, _place: place }))
    }

    /// Lets go now, unless somebody else shares it.
    pub(super) async fn release(self) {
        if let Some(locks) = Arc::into_inner(self.0).and_then(|held| held.locks) {
            locks.release().await;
        }
    }
}

/// A piece of a body.
pub(super) enum Piece<T> {
    /// More follow.
    Next(T),
    /// None follows.
    Last(T),
}

/// A stream of what a blocking `produce` makes, one piece ahead of who asks. What it holds is let go before the last
/// piece is handed out, so that who has seen all can go on with the image.
pub(super) fn pieces<T, P>(hold: Hold, produce: P) -> BoxStream<'static, Result<T>>
where
    T: Send + 'static,
    P: FnMut() -> Result<Piece<T>> + Send + 'static,
{
    stream::unfold(Body::Closed(produce, hold), Body::step).boxed()
}

/// A body between two pieces.
enum Body<T, P> {
    /// Nobody has asked yet.
    Closed(P, Hold),
    /// The next piece is being made.
    Open(JoinHandle<(P, Result<Piece<T>>)>, Hold),
    /// The last piece was handed out.
    Over,
}

impl<T, P> Body<T, P>
where
    T: Send + 'static,
    P: FnMut() -> Result<Piece<T>> + Send + 'static,
{
    async fn step(self) -> Option<(Result<T>, Self)> {
        let (making, hold) = match self {
            Self::Closed(produce, hold) => (make(produce), hold),
            Self::Open(making, hold) => (making, hold),
            Self::Over => return None,
        };
        let last = match making.await {
            Ok((produce, Ok(Piece::Next(item)))) => return Some((Ok(item), Self::Open(make(produce), hold))),
            // The files are closed before the locks are let go.
            Ok((_, Ok(Piece::Last(item)))) => Ok(item),
            Ok((_, Err(error))) => Err(error),
            Err(error) => Err(ServiceError::internal(format!("a body's thread ended: {error}"))),
        };
        hold.release().await;
        Some((last, Self::Over))
    }
}

fn make<T, P>(mut produce: P) -> JoinHandle<(P, Result<Piece<T>>)>
where
    T: Send + 'static,
    P: FnMut() -> Result<Piece<T>> + Send + 'static,
{
    tokio::task::spawn_blocking(move || {
        let piece = produce();
        (produce, piece)
    })
}
