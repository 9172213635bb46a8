//! Bounds on how long a client may take nothing of what it asked for.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::task::AbortOnDropHandle;
use vdisk_service::{ErrorCode, ServiceError};

/// How long.
pub const PAUSE: Duration = Duration::from_secs(60);

/// A connection that breaks when its client takes nothing of what is written.
pub struct TakenInTime<S> {
    stream: S,
    pause: Duration,
    /// Runs while there is no room for more.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<S> TakenInTime<S> {
    /// Puts the bound on a connection.
    pub fn new(stream: S) -> Self {
        Self::within(PAUSE, stream)
    }

    fn within(pause: Duration, stream: S) -> Self {
        Self {
            stream,
            pause,
            patience: None,
        }
    }

    fn judge<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.patience = None;
            return outcome;
        }
        let pause = self.pause;
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
        ready!(patience.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TakenInTime<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TakenInTime<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, buf);
        self.judge(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, bufs);
        self.judge(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(context) {
            // Nothing may have been written by it, so patience goes on.
            Poll::Ready(outcome) => Poll::Ready(outcome),
            Poll::Pending => self.judge(context, Poll::Pending),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(context, outcome)
    }
}

/// A body that breaks off, and lets go of all it holds, when nobody asks for its next piece: the client of one stream of
/// many on a connection may take nothing while the others move.
pub fn not_ignored<T: Send + 'static>(body: Body<T>) -> Body<T> {
    not_ignored_for(PAUSE, body)
}

/// What is streamed to a client.
type Body<T> = BoxStream<'static, Result<T, ServiceError>>;

fn not_ignored_for<T: Send + 'static>(pause: Duration, body: Body<T>) -> Body<T> {
    let offer = Arc::new(Mutex::new(Offer::Open {
        body,
        untaken_since: Some(Instant::now()),
    }));
    let watch = AbortOnDropHandle::new(tokio::spawn(withdraw(offer.clone(), pause)));
    let next = move |context: &mut Context<'_>| {
        let _goes_with_the_body = &watch;
        lock(&offer).poll_next(context, pause)
    };
    futures::stream::poll_fn(next).boxed()
}

/// A body and its client.
enum Offer<T> {
    Open {
        body: Body<T>,
        /// Since when the client has not asked for more.
        untaken_since: Option<Instant>,
    },
    Withdrawn,
    Over,
}

impl<T> Offer<T> {
    fn poll_next(&mut self, context: &mut Context<'_>, pause: Duration) -> Poll<Option<Result<T, ServiceError>>> {
        let piece = match self {
            Self::Open { body, untaken_since } => {
                *untaken_since = None;
                let piece = ready!(body.poll_next_unpin(context));
                *untaken_since = Some(Instant::now());
                piece
            }
            Self::Withdrawn => Some(Err(broken_off(pause))),
            Self::Over => None,
        };
        if !matches!(piece, Some(Ok(_))) {
            *self = Self::Over;
        }
        Poll::Ready(piece)
    }

    /// How long the client has left.
    fn left(&self, pause: Duration) -> Option<Duration> {
        match self {
            Self::Open { untaken_since, .. } => {
                let waited = untaken_since.map_or(Duration::ZERO, |since| since.elapsed());
                Some(pause.saturating_sub(waited))
            }
            Self::Withdrawn | Self::Over => None,
        }
    }
}

async fn withdraw<T>(offer: Arc<Mutex<Offer<T>>>, pause: Duration) {
    loop {
        let left = {
            let mut offer = lock(&offer);
            let Some(left) = offer.left(pause) else { return };
            if left.is_zero() {
                *offer = Offer::Withdrawn;
                return;
            }
            left
        };
        tokio::time::sleep(left).await;
    }
}

fn broken_off(pause: Duration) -> ServiceError {
    let text = format!(
        "nothing was taken for {} seconds; ask for the rest",
        pause.as_secs_f32()
    );
    ServiceError::new(ErrorCode::Cancelled, text)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_connection_breaks_when_nothing_is_taken() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut ours = TakenInTime::within(SHORT, ours);
        let written = tokio::spawn(async move {
            let error = ours.write_all(&[7; 64]).await.unwrap_err();
            error.kind()
        });
        let mut first = [0; 20];
        theirs.read_exact(&mut first).await.unwrap();
        assert_eq!(written.await.unwrap(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_slow_client_gets_all_the_same() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut ours = TakenInTime::within(SHORT * 10, ours);
        let written = tokio::spawn(async move { ours.write_all(&[7; 64]).await });
        let mut piece = [0; 4];
        for _ in 0..16 {
            tokio::time::sleep(SHORT).await;
            theirs.read_exact(&mut piece).await.unwrap();
        }
        written.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_body_that_nobody_asks_for_is_let_go() {
        let kept = Arc::new(());
        let held = kept.clone();
        let pieces = futures::stream::repeat_with(move || {
            let _ = &held;
            Ok(1)
        });
        let mut body = not_ignored_for(SHORT, pieces.boxed());
        assert_eq!(body.next().await.unwrap().unwrap(), 1);
        while Arc::strong_count(&kept) > 1 {
            tokio::time::sleep(SHORT).await;
        }
        assert_eq!(body.next().await.unwrap().unwrap_err().code, ErrorCode::Cancelled);
        assert!(body.next().await.is_none());
    }

    #[tokio::test]
    async fn a_body_may_take_its_time() {
        let slow = futures::stream::once(async {
            tokio::time::sleep(SHORT * 4).await;
            Ok(1)
        });
        let body: Vec<_> = not_ignored_for(SHORT, slow.boxed()).collect().await;
        assert_eq!(body.len(), 1);
        assert!(body.iter().all(Result::is_ok));
    }
}
