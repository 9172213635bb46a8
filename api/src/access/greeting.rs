//! A bound on how long a client may leave open which version of HTTP it speaks.
//!
//! Until that is known, no version's own bounds hold yet: a client that sends nothing would keep its connection for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What a client of HTTP/2 sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection that breaks when its client has not sent in time what tells the version: the whole preface of HTTP/2, or a
/// byte that is none of it.
pub struct Greeting<S> {
    stream: S,
    /// Bytes of the preface that have come; `None` when the version is known.
    waiting: Option<(usize, Pin<Box<Sleep>>)>,
}

impl<S> Greeting<S> {
    /// Puts the bound on a connection.
    pub fn within(patience: Duration, stream: S) -> Self {
        Self {
            stream,
            waiting: Some((0, Box::pin(tokio::time::sleep(patience)))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeting<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buf);
        let Some((known, patience)) = &mut self.waiting else {
            return outcome;
        };
        if outcome.is_pending() {
            ready!(patience.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let come = buf.filled().get(before..).unwrap_or_default();
        let missing = PREFACE.get(*known..).unwrap_or_default();
        if come.len() < missing.len() && missing.starts_with(come) {
            *known += come.len();
        } else {
            self.waiting = None;
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeting<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_client_that_does_not_say_its_version_is_given_up() {
        for beginning in [&b""[..], b"P", b"PRI * HTT", &PREFACE[..23]] {
            let (ours, mut theirs) = tokio::io::duplex(64);
            let mut ours = Greeting::within(SHORT, ours);
            theirs.write_all(beginning).await.unwrap();
            let mut come = Vec::new();
            let error = ours.read_to_end(&mut come).await.unwrap_err();
            assert_eq!((error.kind(), &come[..]), (io::ErrorKind::TimedOut, beginning));
        }
    }

    #[tokio::test]
    async fn one_that_has_said_it_may_pause() {
        for beginning in [&b"G"[..], b"PRJ", b"PRI * HTTP/1.1", PREFACE] {
            let (ours, mut theirs) = tokio::io::duplex(64);
            let mut ours = Greeting::within(SHORT, ours);
            let client = async {
                // In two pieces, so that the comparison goes on where it was.
                let (first, rest) = beginning.split_at(beginning.len() / 2);
                theirs.write_all(first).await.unwrap();
                tokio::task::yield_now().await;
                theirs.write_all(rest).await.unwrap();
                tokio::time::sleep(SHORT * 3).await;
                theirs.write_all(b"more").await.unwrap();
                drop(theirs);
            };
            let mut come = Vec::new();
            let (read, ()) = tokio::join!(ours.read_to_end(&mut come), client);
            read.unwrap();
            assert_eq!(come, [beginning, b"more"].concat());
        }
    }
}
