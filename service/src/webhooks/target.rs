//! Where deliveries may go: the rule and the resolver are those of imports by URL.

use std::sync::Arc;

use vdisk_engine::storage::{AddressGuard, is_public_web, web_url};

use crate::error::{Result, ServiceError};

const URL_CHARS: usize = 2048;

/// Checks what can be checked without resolving the name.
///
/// # Errors
/// `invalid_argument`.
pub fn check_url(url: &str) -> Result<()> {
    if url.len() > URL_CHARS {
        let public = format!("the URL has at most {URL_CHARS} characters");
        return Err(ServiceError::invalid("url", public));
    }
    match web_url(url) {
        Ok(_) => Ok(()),
        Err(error) => Err(ServiceError::invalid("url", error.to_string())),
    }
}

/// Resolves names for deliveries. `anywhere`: the operator allows targets that are not on the public web.
pub fn guard(anywhere: bool) -> AddressGuard {
    AddressGuard {
        allow: Arc::new(move |address| anywhere || is_public_web(address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            "http://127\u{3002}0.0.1/",
        ];
        for url in bad {
            assert!(check_url(url).is_err(), "{url}");
        }
        assert!(check_url(&format!("http://a/{}", "x".repeat(URL_CHARS))).is_err());
    }
}
