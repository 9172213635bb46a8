//! Bodies made on a thread of their own and handed over piece by piece: memory stays bounded, and a client that goes
//! away ends the work.

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio::sync::mpsc;

use super::locks::RequestLocks;
use crate::error::Result;

/// A stream whose items a blocking `produce` sends. It should stop when sending fails: nobody listens any more. The
/// locks are let go before the last item is handed out, so that who has seen all can go on with the image.
pub(super) fn produced<T: Send + 'static>(
    depth: usize,
    locks: Option<RequestLocks>,
    produce: impl FnOnce(&Outlet<T>) -> Result<()> + Send + 'static,
) -> BoxStream<'static, Result<T>> {
    let (sender, receiver) = mpsc::channel(depth);
    tokio::task::spawn_blocking(move || {
        let outlet = Outlet(sender);
        if let Err(error) = produce(&outlet) {
            // Nobody listens: the error has nobody to go to.
            let _ = outlet.0.blocking_send(Err(error));
        }
    });
    let feed = Feed {
        receiver,
        locks,
        ahead: None,
    };
    stream::unfold(feed, Feed::step).boxed()
}

struct Feed<T> {
    receiver: mpsc::Receiver<Result<T>>,
    locks: Option<RequestLocks>,
    /// With locks: the item to hand out next, held back until it is known whether it is the last.
    ahead: Option<Result<T>>,
}

impl<T> Feed<T> {
    async fn step(mut self) -> Option<(Result<T>, Self)> {
        let item = match self.ahead.take() {
            Some(item) => Some(item),
            None => self.receiver.recv().await,
        };
        if let Some(locks) = self.locks.take() {
            self.ahead = self.receiver.recv().await;
            match self.ahead {
                Some(_) => self.locks = Some(locks),
                None => locks.release().await,
            }
        }
        Some((item?, self))
    }
}

/// Where a producer puts its items.
pub(super) struct Outlet<T>(mpsc::Sender<Result<T>>);

impl<T> Outlet<T> {
    /// Hands an item over; false when nobody wants it.
    pub(super) fn send(&self, item: T) -> bool {
        self.0.blocking_send(Ok(item)).is_ok()
    }
}
