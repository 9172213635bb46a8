use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clap::Args;

use super::Failure;
use crate::settings::DEFAULT_LISTEN;

/// How long the service may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which service to ask.
#[derive(Args)]
pub struct Healthcheck {
    /// Address the service listens on
    #[arg(long, env = "VDISKD_LISTEN", value_name = "ADDR", default_value = DEFAULT_LISTEN)]
    listen: SocketAddr,
}

/// Asks `/healthz` over plain HTTP/1.1.
///
/// # Errors
/// No answer, or one other than 200.
pub fn run(options: &Healthcheck) -> Result<(), Failure> {
    let mut address = options.listen;
    if address.ip().is_unspecified() {
        // Listening everywhere includes the loopback address of the same family.
        let loopback = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
        address.set_ip(loopback.parse()?);
    }
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    if &head == b"HTTP/1.1 200" {
        return Ok(());
    }
    Err(format!("{address} answered '{}'", String::from_utf8_lossy(&head)).into())
}
