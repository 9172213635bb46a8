//! Listens, serves both transports on one port, and ends in bounded time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::App;
use crate::access::authenticate::ClientCertificate;
use crate::access::greeting::Greeting;
use crate::access::limits::CONNECTIONS;
use crate::access::untaken::TakenInTime;
use crate::body::RequestBody;
use crate::http::router;

/// How long a client may take to send a request's head, and to say which version of HTTP it speaks.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of one HTTP/2 connection.
const STREAMS: u32 = 100;
/// HTTP/2 connections whose other end is silent are asked this often whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Bytes of the header fields of an HTTP/2 request.
const HEADER_LIST: u32 = 32 << 10;

/// Serves until `stop` is ready, then answers what has been asked and ends, within `grace`: event streams and long polls
/// end at once, jobs that run are waited for and handed back to the queue if they take longer.
pub async fn serve(listener: TcpListener, app: App, stop: impl Future<Output = ()>, grace: Duration) {
    let connections = GracefulShutdown::new();
    let (builder, routes) = (builder(), router(app.clone()));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            accepted = next(&listener, &places) => match accepted {
                Ok((stream, place)) => {
                    let connection = Connection {
                        builder: builder.clone(),
                        watcher: connections.watcher(),
                        routes: routes.clone(),
                        patience: HEAD_TIMEOUT,
                    };
                    let tls = app.tls.clone().map(TlsAcceptor::from);
                    tokio::spawn(async move {
                        connection.serve(stream, tls).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: give connections time to end.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = &mut stop => break,
        }
    }
    drop(listener);
    tracing::info!(grace_seconds = grace.as_secs(), "stopping");
    app.stopping.cancel();
    // Requests need the service, so they come first, with half of the time; jobs go on meanwhile.
    let began = Instant::now();
    if tokio::time::timeout(grace / 2, connections.shutdown()).await.is_err() {
        tracing::warn!("some requests were not answered in time");
    }
    app.service.shutdown(grace.saturating_sub(began.elapsed())).await;
    tracing::info!("stopped");
}

/// The next connection once there is a place for it: beyond the bound, clients wait in the listener's queue.
async fn next(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    Ok((listener.accept().await?.0, place))
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_LIST)
        .keep_alive_interval(KEEPALIVE);
    builder
}

/// What a connection needs of the server.
struct Connection {
    builder: Builder<TokioExecutor>,
    watcher: Watcher,
    routes: Router,
    /// How long the client may take to say which version of HTTP it speaks.
    patience: Duration,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Answers are written whole, so waiting to fill packets only delays them.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else {
            return self.speak(stream, None).await;
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let certificates = stream.get_ref().1.peer_certificates();
                let client = certificates
                    .and_then(<[_]>::first)
                    .map(|der| ClientCertificate::of(der));
                self.speak(stream, client).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn speak<S>(self, stream: S, client: Option<ClientCertificate>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let routes = self.routes.map_request(move |request: http::Request<Incoming>| {
            let mut request = RequestBody::of(request).map(Body::new);
            if let Some(client) = &client {
                request.extensions_mut().insert(client.clone());
            }
            request
        });
        let service = TowerToHyperService::new(routes);
        let stream = TakenInTime::new(Greeting::within(self.patience, stream));
        let connection = self
            .builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        if let Err(error) = self.watcher.watch(connection).await {
            tracing::debug!(error, "a connection broke");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What a client gets that sends this and then waits.
    async fn answer_to(sent: &[u8]) -> Vec<u8> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        // Connections end when it goes.
        let connections = GracefulShutdown::new();
        let connection = Connection {
            builder: builder(),
            watcher: connections.watcher(),
            routes: Router::new(),
            patience: Duration::from_millis(50),
        };
        let served = tokio::spawn(connection.speak(ours, None));
        theirs.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        // Less than a head may take.
        let closed = tokio::time::timeout(HEAD_TIMEOUT / 2, theirs.read_to_end(&mut answer)).await;
        closed.expect("the connection stays open").unwrap();
        served.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_is_closed() {
        for sent in [&b""[..], b"P", b"PRI * HTT"] {
            assert_eq!(answer_to(sent).await, b"");
        }
        let answered = answer_to(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(answered.starts_with(b"HTTP/1.1 404"));
    }
}
