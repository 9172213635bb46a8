//! Where deliveries may go. Names are resolved once, every address is checked, and the checked address is the one that is
//! connected to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use vdisk_engine::storage::carried_ipv4;

use crate::error::{Result, ServiceError};

const URL_CHARS: usize = 2048;

/// Checks what can be checked without resolving the name.
///
/// # Errors
/// `invalid_argument`.
pub fn check_url(url: &str) -> Result<()> {
    let refuse = |why: &str| Err(ServiceError::invalid("url", format!("the URL {why}")));
    if url.len() > URL_CHARS || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse("has at most 2048 visible ASCII characters");
    }
    let Ok(uri) = url.parse::<Uri>() else {
        return refuse("cannot be read");
    };
    if !["http", "https"].contains(&uri.scheme_str().unwrap_or("")) {
        return refuse("starts with http:// or https://");
    }
    let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
        return refuse("names a host");
    };
    if authority.as_str().contains('@') || url.contains(['#', '\\']) {
        return refuse("holds no user, no fragment and no backslash");
    }
    Ok(())
}

/// Resolves as the system does, and refuses names of which any address is not to be reached.
#[derive(Debug)]
pub struct CheckedResolver {
    inner: DefaultResolver,
    anywhere: bool,
}

impl CheckedResolver {
    /// `anywhere`: the operator allows loopback and link-local targets.
    pub fn new(anywhere: bool) -> Self {
        let inner = DefaultResolver::default();
        Self { inner, anywhere }
    }
}

impl Resolver for CheckedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        if !self.anywhere && found.iter().any(|address| is_ours(address.ip())) {
            let why = "the target is on this machine or its link, where webhooks may not go";
            return Err(ureq::Error::Io(std::io::Error::new(
                std::io::ErrorKind::PermissionDenied,
                why,
            )));
        }
        Ok(found)
    }
}

/// Addresses that mean this machine, its link, or nobody in particular.
fn is_ours(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_ours_v4(v4),
        IpAddr::V6(v6) => is_ours_v6(v6),
    }
}

fn is_ours_v4(v4: Ipv4Addr) -> bool {
    let first = v4.octets()[0];
    first == 0 || first >= 224 || v4.is_loopback() || v4.is_link_local()
}

fn is_ours_v6(v6: Ipv6Addr) -> bool {
    // The metadata service of a cloud, in its unique local range.
    let metadata = v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    v6.is_loopback()
        || v6.is_unspecified()
        || v6.is_multicast()
        || v6.is_unicast_link_local()
        || metadata
        || carried_ipv4(v6).is_some_and(is_ours_v4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_and_its_link_are_known_in_every_spelling() {
        let ours = [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "fe80::1",
            "ff02::1",
            "2002:7f00:1::",
            "fd00:ec2::254",
        ];
        for address in ours {
            assert!(is_ours(address.parse().unwrap()), "{address}");
        }
        for address in [
            "192.0.2.1",
            "10.0.0.1",
            "172.16.0.1",
            "2001:db8::1",
            "fd00::1",
            "64:ff9b::c000:201",
        ] {
            assert!(!is_ours(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn urls_are_read_strictly() {
        for good in [
            "http://hooks.example/x?y=z",
            "https://10.0.0.1:8443/",
            "http://[2001:db8::1]/",
        ] {
            check_url(good).unwrap();
        }
        let bad = [
            "",
            "hooks.example",
            "file:///etc/passwd",
            "gopher://x/",
            "unix:/run/x",
            "http://",
            "http:///x",
            "http://a@b/",
            "http://a/#b",
            "http://a\\b/",
            "http://a b/",
            "http://a/\n",
            "ftp://a/",
        ];
        for url in bad {
            assert!(check_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn numbers_that_resolve_to_loopback_are_refused_when_they_are_resolved() {
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "017700000001",
            "0",
            "localhost",
            "[::1]",
            "[::]",
        ] {
            let url = format!("http://{host}:9/");
            let agent = ureq::Agent::with_parts(
                Config::builder()
                    .timeout_global(Some(std::time::Duration::from_secs(5)))
                    .proxy(None)
                    .build(),
                ureq::unversioned::transport::DefaultConnector::default(),
                CheckedResolver::new(false),
            );
            let error = agent.get(&url).call().unwrap_err().to_string();
            assert!(!error.contains("refused"), "{url} was connected to: {error}");
        }
    }
}
