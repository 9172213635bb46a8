//! Names under which the service may be called.
//!
//! A web page can make its own name resolve to 127.0.0.1 and then call a service there as if it were its own site (DNS
//! rebinding). What such a call cannot change is the name in the `Host` header.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::uri::Authority;
use http::{HeaderMap, Uri, header};

use super::{Authentication, refusal};
use crate::errors::TransportCode;
use crate::grpc;
use crate::state::App;

/// Which names are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// Whatever a client calls us: where requests need a token, which a page of another site has not.
    Any,
    /// Loopback names, all addresses, and these names. A page that was loaded from an address has no name to rebind.
    Addresses(Vec<String>),
    /// Loopback names and addresses, and these names.
    Only(Vec<String>),
}

impl Default for Hosts {
    fn default() -> Self {
        Self::Only(Vec::new())
    }
}

impl Hosts {
    /// What holds for a listener: a loopback one is called by loopback names and the given ones. Others are called by their
    /// addresses too where requests need no token; otherwise by the given names, and by any when none is given.
    pub fn of(listen: SocketAddr, authentication: Authentication, names: Vec<String>) -> Self {
        match authentication {
            _ if listen.ip().is_loopback() => Self::Only(names),
            Authentication::Open => Self::Addresses(names),
            Authentication::Required if names.is_empty() => Self::Any,
            Authentication::Required => Self::Only(names),
        }
    }

    /// Whether a request may pass: all the names that it calls us by are ours.
    fn allow(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let (names, addresses) = match self {
            Self::Any => return true,
            Self::Addresses(names) => (names, true),
            Self::Only(names) => (names, false),
        };
        let ours = |host: &str| is_ours(names, host) || addresses && address(host).is_some();
        let given = headers.get_all(header::HOST).iter();
        let mut called = given
            .map(|host| host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()))
            .chain(uri.authority().map(|authority| Some(authority.clone())))
            .peekable();
        called.peek().is_some() && called.all(|host| host.is_some_and(|host| ours(host.host())))
    }
}

fn address(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    bare.unwrap_or(host).parse().ok()
}

fn is_ours(names: &[String], host: &str) -> bool {
    let same = |name: &String| name.eq_ignore_ascii_case(host) || name.eq_ignore_ascii_case(host.trim_end_matches('.'));
    match address(host) {
        Some(IpAddr::V4(address)) if address.is_loopback() => true,
        Some(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some_and(|v4: Ipv4Addr| v4.is_loopback()) => true,
        Some(IpAddr::V6(address)) if address.is_loopback() => true,
        _ => host.trim_end_matches('.').eq_ignore_ascii_case("localhost") || names.iter().any(same),
    }
}

/// Refuses requests under names that are not ours.
pub async fn known_host(State(app): State<App>, request: Request, next: Next) -> Response {
    if app.policy.hosts.allow(request.headers(), request.uri()) {
        return next.run(request).await;
    }
    let detail = "the Host header is not a name of this service; call it by a loopback name (or its address, where it listens \
                  on one that others reach), or let the operator add the name with --host or VDISKD_HOST";
    refusal(grpc::is_call(&request), TransportCode::UnknownHost, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(hosts: &Hosts, names: &[&str], uri: &str) -> bool {
        let mut headers = HeaderMap::new();
        for name in names {
            headers.append(header::HOST, name.parse().unwrap());
        }
        hosts.allow(&headers, &uri.parse().unwrap())
    }

    #[test]
    fn a_loopback_listener_is_called_by_loopback_names_only() {
        let listen = "127.0.0.1:8080".parse().unwrap();
        let hosts = Hosts::of(listen, Authentication::Open, vec!["vdisk.internal".to_owned()]);
        let ours = [
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "127.0.0.1:8080",
            "127.8.9.1",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
            "vdisk.internal",
            "VDISK.internal.:8080",
        ];
        for name in ours {
            assert!(allows(&hosts, &[name], "/v1/images"), "{name}");
        }
        let foreign = [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8080",
            "192.168.0.1",
            "[fe80::1]",
            "0.0.0.0",
            "127.1",
            "",
            "vdisk.internal.evil.example",
            "[::1",
            "a b",
        ];
        for name in foreign {
            assert!(!allows(&hosts, &[name], "/v1/images"), "{name}");
        }
    }

    #[test]
    fn every_name_of_a_request_counts() {
        let hosts = Hosts::default();
        assert!(!allows(&hosts, &[], "/v1/images"), "no name at all");
        assert!(!allows(&hosts, &["localhost", "evil.example"], "/v1/images"));
        assert!(!allows(&hosts, &["localhost"], "http://evil.example/v1/images"));
        assert!(allows(&hosts, &[], "http://localhost:8080/v1/images"), "HTTP/2");
    }

    #[test]
    fn other_listeners_take_any_name_where_a_token_is_needed_and_no_name_given() {
        let address = "0.0.0.0:8080".parse().unwrap();
        let hosts = |names| Hosts::of(address, Authentication::Required, names);
        assert!(allows(&hosts(Vec::new()), &["any.example"], "/"));
        let named = hosts(vec!["vdisk.example".to_owned()]);
        assert!(allows(&named, &["vdisk.example:8080"], "/"));
        assert!(!allows(&named, &["any.example"], "/"));
    }

    #[test]
    fn a_rebound_name_reaches_no_listener_that_needs_no_token() {
        for listen in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:8080", "127.0.0.1:8080"] {
            let listen = listen.parse().unwrap();
            for names in [Vec::new(), vec!["vdisk.example".to_owned()]] {
                let hosts = Hosts::of(listen, Authentication::Open, names.clone());
                assert!(!allows(&hosts, &["evil.example:8080"], "/v1/tokens"), "{listen}");
                assert!(!allows(&hosts, &["192.0.2.1.evil.example"], "/v1/tokens"), "{listen}");
                assert!(allows(&hosts, &["localhost:8080"], "/v1/tokens"), "{listen}");
                assert!(names.iter().all(|name| allows(&hosts, &[name], "/")), "{listen}");
            }
        }
    }

    #[test]
    fn a_reachable_listener_that_needs_no_token_is_called_by_addresses() {
        let hosts = Hosts::of("0.0.0.0:8080".parse().unwrap(), Authentication::Open, Vec::new());
        for host in ["192.0.2.1:8080", "[2001:db8::1]:8080", "127.0.0.1"] {
            assert!(allows(&hosts, &[host], "/"), "{host}");
        }
        for host in ["vdiskd:8080", "2130706433", "127.1", "", "[::1"] {
            assert!(!allows(&hosts, &[host], "/"), "{host}");
        }
    }
}
