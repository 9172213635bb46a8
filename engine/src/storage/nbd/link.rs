//! A socket with a deadline: a server that sends a byte now and then is as late as one that sends nothing.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustls::ClientConnection;

use super::tls::{self, NbdTls};
use super::{NbdAddress, NbdOptions};
use crate::{CancelToken, Error, Result};

/// How often somebody who waits for a server looks whether the work is still wanted.
const LISTEN: Duration = Duration::from_millis(50);

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection. Every exchange begins with [`start`](Self::start) and must end within the timeout.
#[derive(Debug)]
pub(super) struct Link {
    wire: Wire,
    tls: Option<Box<ClientConnection>>,
}

/// The socket with the deadline of the present exchange.
#[derive(Debug)]
struct Wire {
    socket: Socket,
    timeout: Duration,
    clock: fn() -> Duration,
    deadline: Duration,
    cancel: CancelToken,
}

impl Link {
    pub(super) fn connect(options: &NbdOptions) -> Result<Self> {
        let deadline = (options.clock)().saturating_add(options.timeout);
        let left = || match options.cancel.is_cancelled() {
            true => Err(io::ErrorKind::Interrupted),
            false => remaining(deadline, (options.clock)()),
        };
        let socket = match &options.address {
            NbdAddress::Unix(path) => left().map_err(io::Error::from).and_then(|l| connect_unix(path, l)),
            NbdAddress::Tcp { host, port } => connect_tcp(host, *port, left),
        };
        let failed = |e| match options.cancel.is_cancelled() {
            true => Error::cancelled(),
            false => Error::io(format!("failed to connect to '{}'", options.address), e),
        };
        let socket = socket.map_err(failed)?;
        Ok(Self::new(socket, deadline, options))
    }

    /// Over a connection that is there already.
    pub(super) fn over(connection: UnixStream, options: &NbdOptions) -> Self {
        let deadline = (options.clock)().saturating_add(options.timeout);
        Self::new(Socket::Unix(connection), deadline, options)
    }

    fn new(socket: Socket, deadline: Duration, options: &NbdOptions) -> Self {
        let wire = Wire {
            socket,
            timeout: options.timeout,
            clock: options.clock,
            deadline,
            cancel: options.cancel.clone(),
        };
        Self { wire, tls: None }
    }

    /// Gives the next exchange its time: none that ends, where the server may need any.
    pub(super) fn start(&mut self, bounded: bool) {
        self.wire.deadline = match bounded {
            true => (self.wire.clock)().saturating_add(self.wire.timeout),
            false => Duration::MAX,
        };
    }

    /// Encrypts everything from here on.
    ///
    /// # Errors
    /// `Denied` for a server that is not the one it should be, or that does not take our certificate; `Io`.
    pub(super) fn encrypt(&mut self, credentials: &NbdTls) -> Result<()> {
        let mut tls = credentials.connection()?;
        tls::handshake(&mut tls, &mut self.wire).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => Error::denied(format!("the TLS handshake with the NBD server failed: {e}")),
            _ => self.wire.lost("begin TLS with", e),
        })?;
        self.tls = Some(tls);
        Ok(())
    }

    pub(super) fn read(&mut self, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let got = match &mut self.tls {
                None => self.wire.read(buf),
                Some(tls) => tls::read(tls, &mut self.wire, buf),
            };
            match got.map_err(|e| self.wire.lost("read from", e))? {
                0 => return Err(self.wire.lost("read from", io::ErrorKind::UnexpectedEof.into())),
                n => buf = buf.get_mut(n..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let sent = match &mut self.tls {
                None => self.wire.write(bytes),
                Some(tls) => tls::write(tls, &mut self.wire, bytes),
            };
            let sent = sent.map_err(|e| self.wire.lost("write to", e))?;
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    pub(super) fn read_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a message whose length was checked.
    pub(super) fn read_vec(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(&mut bytes)?;
        Ok(bytes)
    }
}

impl Wire {
    /// How long to wait before looking again.
    fn wait(&self) -> io::Result<Duration> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("the operation was cancelled"));
        }
        Ok(remaining(self.deadline, (self.clock)())?.min(LISTEN))
    }
    fn lost(&self, verb: &str, error: io::Error) -> Error {
        match self.cancel.is_cancelled() {
            true => Error::cancelled(),
            false => Error::io(format!("cannot {verb} the NBD server"), error),
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let wait = self.wait()?;
            let got = match &mut self.socket {
                Socket::Tcp(s) => s.set_read_timeout(Some(wait)).and_then(|()| s.read(buf)),
                Socket::Unix(s) => s.set_read_timeout(Some(wait)).and_then(|()| s.read(buf)),
            };
            match got {
                Err(e) if passing(&e) => {}
                done => return done,
            }
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let wait = self.wait()?;
            let sent = match &mut self.socket {
                Socket::Tcp(s) => s.set_write_timeout(Some(wait)).and_then(|()| s.write(bytes)),
                Socket::Unix(s) => s.set_write_timeout(Some(wait)).and_then(|()| s.write(bytes)),
            };
            match sent {
                Err(e) if passing(&e) => {}
                done => return done,
            }
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The next round finds the deadline passed, if it is.
fn passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn remaining(deadline: Duration, now: Duration) -> Result<Duration, io::ErrorKind> {
    deadline
        .checked_sub(now)
        .filter(|left| !left.is_zero())
        .ok_or(io::ErrorKind::TimedOut)
}

fn connect_tcp(host: &str, port: u16, left: impl Fn() -> Result<Duration, io::ErrorKind>) -> io::Result<Socket> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left()?) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                // A server that is gone for good is noticed where no deadline ends the wait.
                sockopt::set_socket_keepalive(&stream, true)?;
                return Ok(Socket::Tcp(stream));
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// A full queue of connections blocks; the send timeout bounds that.
fn connect_unix(path: &str, left: Duration) -> io::Result<Socket> {
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&fd, sockopt::Timeout::Send, Some(left))?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(Socket::Unix(fd.into()))
}
