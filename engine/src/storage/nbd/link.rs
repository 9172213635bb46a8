//! A socket with a deadline: a server that sends a byte now and then is as late as one that sends nothing.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::{NbdAddress, NbdOptions};
use crate::{Error, Result};

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection. Every exchange begins with [`start`](Self::start) and must end within the timeout.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    timeout: Duration,
    clock: fn() -> Duration,
    deadline: Duration,
}

impl Link {
    pub(super) fn connect(options: &NbdOptions) -> Result<Self> {
        let deadline = (options.clock)().saturating_add(options.timeout);
        let left = || remaining(deadline, (options.clock)());
        let socket = match &options.address {
            NbdAddress::Unix(path) => left().map_err(io::Error::from).and_then(|l| connect_unix(path, l)),
            NbdAddress::Tcp { host, port } => connect_tcp(host, *port, left),
        };
        Ok(Self {
            socket: socket.map_err(|e| Error::io(format!("failed to connect to '{}'", options.address), e))?,
            timeout: options.timeout,
            clock: options.clock,
            deadline,
        })
    }

    /// Gives the next exchange its time.
    pub(super) fn start(&mut self) {
        self.deadline = (self.clock)().saturating_add(self.timeout);
    }

    pub(super) fn read(&mut self, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let left = self.left("read from")?;
            let got = match &mut self.socket {
                Socket::Tcp(s) => s.set_read_timeout(Some(left)).and_then(|()| s.read(buf)),
                Socket::Unix(s) => s.set_read_timeout(Some(left)).and_then(|()| s.read(buf)),
            };
            match got {
                Ok(0) => return Err(lost("read from", io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => buf = buf.get_mut(n..).unwrap_or_default(),
                Err(e) if passing(&e) => {}
                Err(e) => return Err(lost("read from", e)),
            }
        }
        Ok(())
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let left = self.left("write to")?;
            let sent = match &mut self.socket {
                Socket::Tcp(s) => s.set_write_timeout(Some(left)).and_then(|()| s.write(bytes)),
                Socket::Unix(s) => s.set_write_timeout(Some(left)).and_then(|()| s.write(bytes)),
            };
            match sent {
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(e) if passing(&e) => {}
                Err(e) => return Err(lost("write to", e)),
            }
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

    fn left(&self, verb: &str) -> Result<Duration> {
        remaining(self.deadline, (self.clock)()).map_err(|e| lost(verb, e.into()))
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

fn lost(verb: &str, error: io::Error) -> Error {
    Error::io(format!("cannot {verb} the NBD server"), error)
}

fn connect_tcp(host: &str, port: u16, left: impl Fn() -> Result<Duration, io::ErrorKind>) -> io::Result<Socket> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left()?) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
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
