//! One delivery: signed, bounded in time, to an address that was checked.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use ureq::Agent;
use ureq::config::Config;
use ureq::unversioned::transport::DefaultConnector;

use super::target::guard;
use crate::clock::Timestamp;
use crate::error::{Result, ServiceError};
use crate::model::WebhookId;
use crate::secrets::hex;

/// How long a delivery may take in all.
const PATIENCE: Duration = Duration::from_secs(10);

/// A delivery that is ready to go.
pub struct Outgoing {
    url: String,
    webhook: String,
    event: String,
    signature: String,
    body: String,
}

impl Outgoing {
    /// Signs a body: HMAC-SHA256 over the second it is sent in, a dot, and the body.
    pub fn signed(url: &str, id: WebhookId, seq: u64, body: String, secret: &[u8], now: Timestamp) -> Result<Self> {
        let seconds = now.0.div_euclid(1000);
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).map_err(ServiceError::internal)?;
        mac.update(format!("{seconds}.").as_bytes());
        mac.update(body.as_bytes());
        let digits = hex(&mac.finalize().into_bytes());
        Ok(Self {
            url: url.to_owned(),
            webhook: id.to_string(),
            event: seq.to_string(),
            signature: format!("t={seconds},v1={digits}"),
            body,
        })
    }
}

/// Sends a delivery. Only a 2xx counts as taken; redirects are not followed.
pub fn post(outgoing: &Outgoing, anywhere: bool) -> std::result::Result<(), String> {
    let config = Config::builder()
        .timeout_global(Some(PATIENCE))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .proxy(None)
        .user_agent(concat!("vdiskd/", env!("CARGO_PKG_VERSION")))
        .build();
    let agent = Agent::with_parts(config, DefaultConnector::default(), guard(anywhere));
    let answer = agent
        .post(&outgoing.url)
        .header("content-type", "application/json")
        .header("x-vdisk-webhook", &outgoing.webhook)
        .header("x-vdisk-event", &outgoing.event)
        .header("x-vdisk-signature", &outgoing.signature)
        .send(&outgoing.body)
        .map_err(|error| error.to_string())?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    Err(format!("the target answered {}", status.as_u16()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected value is `printf '%s' '1800000000.{"seq":1}' | openssl dgst -sha256 -hmac 'a-secret-of-sixteen'`.
    #[test]
    fn the_signature_is_that_of_openssl() {
        let id = WebhookId::from_u128(7);
        let now = Timestamp(1_800_000_000_999);
        let body = r#"{"seq":1}"#.to_owned();
        let signed = Outgoing::signed("http://x/", id, 1, body, b"a-secret-of-sixteen", now).unwrap();
        assert_eq!(
            signed.signature,
            "t=1800000000,v1=36d828a01a9a0f1bedd1330ec1166876dc4a7f2e2a4620790a1f3a806677770d"
        );
    }

    #[test]
    fn nothing_inside_is_delivered_to() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let id = WebhookId::from_u128(7);
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0",
            "localhost",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "10.0.0.1",
        ] {
            let url = format!("http://{host}:{port}/");
            let outgoing = Outgoing::signed(&url, id, 1, String::new(), b"a-secret-of-sixteen", Timestamp(0)).unwrap();
            let problem = post(&outgoing, false).unwrap_err();
            assert!(problem.contains("may not be connected to"), "{url}: {problem}");
        }
        assert!(listener.accept().is_err(), "somebody connected");
    }
}
