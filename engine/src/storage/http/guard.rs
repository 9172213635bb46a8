//! Which addresses may be connected to. What is asked about is the very address that is then used: a name that resolves to another one
//! the next moment gains nothing. A name of which any address is not allowed is refused as a whole.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::{Error, Result};

/// Whether an address may be connected to.
pub type AllowAddress = Arc<dyn Fn(SocketAddr) -> bool + Send + Sync>;

/// Ports from 1024 on whose services take commands that a request could be mistaken for: NFS, Redis, memcached.
const COMMAND_PORTS: [u16; 3] = [2049, 6379, 11211];

/// Whether a service may follow a URL of somebody else there: a public address, and a port that is the web's or nobody's.
pub fn is_public_web(address: SocketAddr) -> bool {
    let port = address.port();
    let usual = matches!(port, 80 | 443 | 1024..) && !COMMAND_PORTS.contains(&port);
    usual && is_public(address.ip())
}

/// Reads a URL of http or https strictly.
///
/// # Errors
/// `InvalidArgument` for what is none; `Unsupported` for names and passwords in it.
pub fn web_url(text: &str) -> Result<Uri> {
    let invalid = |why: &str| Error::invalid(format!("\"{}\" is no URL of the web: {why}", text.escape_debug()));
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(invalid("it has other characters than visible ASCII"));
    }
    if text.contains(['#', '\\']) {
        return Err(invalid("it has a fragment or a backslash"));
    }
    let url: Uri = text.parse().map_err(|_| invalid("it cannot be read"))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err(invalid("only http and https are known"));
    }
    match url.authority() {
        Some(a) if a.as_str().contains('@') => Err(Error::unsupported("names and passwords in URLs are not supported")),
        Some(a) if a.host() != a.as_str() && a.port_u16().is_none() => Err(invalid("its port is no port")),
        Some(a) if !a.host().is_empty() => Ok(url),
        _ => Err(invalid("it has no host")),
    }
}

/// A URL as it may be shown: the query of a signed one is a secret.
pub fn without_query(url: &str) -> &str {
    url.split_once('?').map_or(url, |(place, _)| place)
}

/// Whether an address is one of the public internet: not loopback, link-local, private, shared, multicast, reserved or unspecified,
/// also where an IPv6 address carries an IPv4 one (RFC 6890, RFC 4193, RFC 6052).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => match carried_ipv4(v6) {
            Some(v4) => is_public_v4(v4),
            // Global unicast is 2000::/3; of it 2001::/23 is for protocols (Teredo), 2001:db8::/32 and 3fff::/20 for documents.
            None => {
                let [a, b, ..] = v6.segments();
                let special = a == 0x2001 && (b < 0x200 || b == 0xdb8) || a == 0x3fff && b < 0x1000;
                a & 0xe000 == 0x2000 && !special
            }
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_link_local()
        || address.is_documentation()
        || matches!(
            (a, b, c),
            (0 | 127 | 224.., _, _) | (100, 64..=127, _) | (192, 0, 0) | (192, 88, 99) | (198, 18..=19, _)
        );
    !special
}

/// The IPv4 address in an IPv4-mapped, IPv4-compatible, NAT64 or 6to4 address (RFC 4291, RFC 6052, RFC 3056).
fn carried_ipv4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match s {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(join(high, low)),
        [0x2002, high, low, ..] => Some(join(high, low)),
        _ => None,
    }
}

/// Resolves names as the system does, once, and refuses those of which any address is not allowed.
pub struct Guard {
    /// The rule.
    pub allow: AllowAddress,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

/// Says that an address of a host is not allowed.
#[derive(Debug)]
pub(super) struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the address of the host may not be connected to here")
    }
}

impl std::error::Error for Refused {}

impl Guard {
    fn require(&self, addresses: &[SocketAddr]) -> std::result::Result<(), ureq::Error> {
        if addresses.iter().all(|address| (self.allow)(*address)) {
            return Ok(());
        }
        Err(ureq::Error::Other(Box::new(Refused)))
    }
}

impl Resolver for Guard {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let found = DefaultResolver::default().resolve(uri, config, timeout)?;
        self.require(&found)?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The blocks of the IANA special-purpose address registries.
    #[test]
    fn only_the_public_internet_is_public() {
        for text in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "2001:4860:4860::8888",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_name_of_both_kinds_of_addresses_is_refused() {
        let guard = Guard {
            allow: Arc::new(is_public_web),
        };
        let (public, own) = ("8.8.8.8:80".parse().unwrap(), "127.0.0.1:80".parse().unwrap());
        assert!(guard.require(&[public]).is_ok());
        assert!(guard.require(&[public, own]).is_err());
        assert!(guard.require(&[own, public]).is_err());
    }

    #[test]
    fn ports_of_other_protocols_are_refused() {
        let at = |port| is_public_web(SocketAddr::new([8, 8, 8, 8].into(), port));
        for port in [
            0, 21, 22, 23, 25, 53, 110, 143, 389, 445, 465, 587, 1023, 2049, 6379, 11211,
        ] {
            assert!(!at(port), "{port}");
        }
        for port in [80, 443, 1024, 8080, 8443, 65535] {
            assert!(at(port), "{port}");
        }
    }
}
