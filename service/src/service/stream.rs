//! Bodies made on a thread of their own and handed over piece by piece: memory stays bounded, and a client that goes
//! away ends the work.

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio::sync::mpsc;

use crate::error::Result;

/// A stream whose items a blocking `produce` sends. It should stop when sending fails: nobody listens any more. `keep`
/// is dropped with the stream.
pub(super) fn produced<T: Send + 'static>(
    depth: usize,
    keep: impl Send + 'static,
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
    stream::unfold((receiver, keep), |(mut receiver, keep)| async move {
        let item = receiver.recv().await?;
        Some((item, (receiver, keep)))
    })
    .boxed()
}

/// Where a producer puts its items.
pub(super) struct Outlet<T>(mpsc::Sender<Result<T>>);

impl<T> Outlet<T> {
    /// Hands an item over; false when nobody wants it.
    pub(super) fn send(&self, item: T) -> bool {
        self.0.blocking_send(Ok(item)).is_ok()
    }
}
