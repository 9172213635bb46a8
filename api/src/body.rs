//! The body of a request, which tells its end from a client that went away.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::HttpBody;
use http::{Request, Version};
use hyper::body::{Frame, Incoming, SizeHint};
use vdisk_service::Bytes;

/// The body of a request as it arrives. Over HTTP/2 a stream that its client reset ends like one that is complete, for some reasons of the
/// reset here and for others in whoever reads the body; what is cut off would count as the whole.
pub struct RequestBody {
    inner: Incoming,
    is_http2: bool,
    over: bool,
}

/// A body that broke off. Deliberately without a source: readers look there for a cancellation, which they take for the end.
#[derive(Debug)]
pub struct CutOff(String);

impl fmt::Display for CutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the body broke off: {}", self.0)
    }
}

impl Error for CutOff {}

impl RequestBody {
    /// The same request with its body watched.
    pub fn of(request: Request<Incoming>) -> Request<Self> {
        let is_http2 = request.version() == Version::HTTP_2;
        request.map(|inner| Self {
            inner,
            is_http2,
            over: false,
        })
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let why = match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
            Some(Ok(frame)) => return Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => error.to_string(),
            None if self.is_http2 && !self.inner.is_end_stream() => "its stream was reset".to_owned(),
            None => return Poll::Ready(None),
        };
        self.over = true;
        Poll::Ready(Some(Err(CutOff(why))))
    }
    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
