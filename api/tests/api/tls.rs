//! TLS: both transports on one port, and clients' certificates.

use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use vdisk_api::access::{Authentication, Policy};
use vdisk_api::proto::ListPoolsRequest;
use vdisk_api::proto::pool_service_client::PoolServiceClient;
use vdisk_api::tls::TlsFiles;
use vdisk_api::vdisk_service::model::Role;

use crate::server::Server;

/// A CA, and what it signed.
struct Pki {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key as PEM.
#[derive(Clone)]
struct Signed {
    certificate: String,
    key: String,
}

impl Pki {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let dir = tempfile::tempdir().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        Self {
            dir,
            issuer: Issuer::new(params, key),
        }
    }

    fn sign(&self, usage: ExtendedKeyUsagePurpose) -> Signed {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        Signed {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn files(&self, with_clients: bool) -> TlsFiles {
        let signed = self.sign(ExtendedKeyUsagePurpose::ServerAuth);
        let (certificate, key) = (self.dir.path().join("cert.pem"), self.dir.path().join("key.pem"));
        std::fs::write(&certificate, signed.certificate).unwrap();
        std::fs::write(&key, signed.key).unwrap();
        TlsFiles {
            certificate,
            key,
            client_ca: with_clients.then(|| self.ca()),
        }
    }

    fn client(&self) -> Signed {
        self.sign(ExtendedKeyUsagePurpose::ClientAuth)
    }
}

async fn over_http(ca: PathBuf, client: Option<Signed>, url: String) -> Result<Value, String> {
    tokio::task::spawn_blocking(move || {
        let pem = std::fs::read(&ca).unwrap();
        let roots = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let roots: Vec<_> = roots.collect();
        let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&roots));
        let identity = client.map(|client| {
            let certificate = ureq::tls::Certificate::from_pem(client.certificate.as_bytes()).unwrap();
            let key = ureq::tls::PrivateKey::from_pem(client.key.as_bytes()).unwrap();
            ureq::tls::ClientCert::new_with_certs(&[certificate], key)
        });
        let tls = tls.client_cert(identity).build();
        let agent: ureq::Agent = ureq::Agent::config_builder().tls_config(tls).build().into();
        let mut answer = agent.get(&url).call().map_err(|error| error.to_string())?;
        let text = answer.body_mut().read_to_string().map_err(|error| error.to_string())?;
        Ok(serde_json::from_str(&text).unwrap())
    })
    .await
    .unwrap()
}

async fn over_grpc(ca: &Path, client: Option<Signed>, url: &str) -> Result<usize, String> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(ca).unwrap()));
    if let Some(client) = client {
        tls = tls.identity(Identity::from_pem(client.certificate, client.key));
    }
    let channel = Channel::from_shared(url.to_owned()).unwrap().tls_config(tls).unwrap();
    let channel = channel.connect().await.map_err(|error| format!("{error:?}"))?;
    let pools = PoolServiceClient::new(channel).list_pools(ListPoolsRequest {}).await;
    pools
        .map(|pools| pools.into_inner().items.len())
        .map_err(|status| status.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_transports_speak_tls_on_one_port() {
    let pki = Pki::new();
    let server = Server::start_tls(Policy::default(), &pki.files(false)).await;
    let pools = over_http(pki.ca(), None, format!("{}/v1/pools", server.url))
        .await
        .unwrap();
    assert_eq!(pools["items"][0]["name"], "default");
    assert_eq!(over_grpc(&pki.ca(), None, &server.url).await, Ok(1));

    let plain = server.url.replace("https", "http");
    assert!(over_http(pki.ca(), None, format!("{plain}/v1/pools")).await.is_err());
    let stranger = Pki::new();
    let refused = over_http(stranger.ca(), None, format!("{}/v1/pools", server.url)).await;
    assert!(refused.unwrap_err().contains("certificate"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_without_a_certificate_of_the_ca_are_refused() {
    let pki = Pki::new();
    let server = Server::start_tls(Policy::default(), &pki.files(true)).await;
    let url = format!("{}/v1/pools", server.url);
    let stranger = Pki::new();
    for wrong in [
        None,
        Some(stranger.client()),
        Some(pki.sign(ExtendedKeyUsagePurpose::ServerAuth)),
    ] {
        assert!(over_http(pki.ca(), wrong.clone(), url.clone()).await.is_err());
        assert!(over_grpc(&pki.ca(), wrong, &server.url).await.is_err());
    }
    assert!(over_http(pki.ca(), Some(pki.client()), url).await.is_ok());
    assert_eq!(over_grpc(&pki.ca(), Some(pki.client()), &server.url).await, Ok(1));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_has_the_role_it_was_given() {
    let pki = Pki::new();
    let policy = Policy {
        authentication: Authentication::Required,
        certificate_role: Some(Role::Reader),
        ..Policy::default()
    };
    let server = Server::start_tls(policy.clone(), &pki.files(true)).await;
    let get = |path: &str| over_http(pki.ca(), Some(pki.client()), format!("{}{path}", server.url));
    assert!(get("/v1/pools").await.is_ok());
    assert!(get("/v1/tokens").await.unwrap_err().contains("403"));
    server.stop().await;

    let without = Policy {
        certificate_role: None,
        ..policy
    };
    let server = Server::start_tls(without, &pki.files(true)).await;
    let refused = over_http(pki.ca(), Some(pki.client()), format!("{}/v1/pools", server.url)).await;
    assert!(refused.unwrap_err().contains("401"));
    server.stop().await;
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let (pki, other) = (Pki::new(), Pki::new());
    let good = pki.files(true);
    good.load().unwrap();
    let missing = TlsFiles {
        key: "/nowhere/key.pem".into(),
        ..good.clone()
    };
    assert!(missing.load().unwrap_err().contains("/nowhere/key.pem"));
    let swapped = TlsFiles {
        key: good.certificate.clone(),
        ..good.clone()
    };
    assert!(swapped.load().unwrap_err().contains("private key"));
    let foreign = TlsFiles {
        key: other.files(false).key,
        ..good.clone()
    };
    assert!(foreign.load().unwrap_err().contains("cannot be used together"));
    let no_ca = TlsFiles {
        client_ca: Some(good.key.clone()),
        ..good
    };
    assert!(no_ca.load().unwrap_err().contains("no certificate"));
}

/// An independent client: what OpenSSL negotiates.
#[tokio::test(flavor = "multi_thread")]
async fn openssl_negotiates_http_2_and_modern_tls_only() {
    if !e2e::tools::have(&["openssl"]) {
        return;
    }
    let pki = Pki::new();
    let server = Server::start_tls(Policy::default(), &pki.files(false)).await;
    let address = server.url.strip_prefix("https://").unwrap().to_owned();
    let connect = |more: &[&str]| {
        let (ca, address) = (pki.ca(), address.clone());
        let more: Vec<String> = more.iter().map(|text| (*text).to_owned()).collect();
        tokio::task::spawn_blocking(move || {
            let output = Command::new("openssl")
                .args(["s_client", "-connect", &address, "-verify_return_error", "-CAfile"])
                .arg(ca)
                .args(more)
                .stdin(std::process::Stdio::null())
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    };
    let modern = connect(&["-alpn", "h2,http/1.1"]).await.unwrap();
    assert!(
        modern.contains("ALPN protocol: h2") && modern.contains("TLSv1.3"),
        "{modern}"
    );
    let older = connect(&["-tls1_2", "-alpn", "http/1.1"]).await.unwrap();
    assert!(
        older.contains("ALPN protocol: http/1.1") && older.contains("TLSv1.2"),
        "{older}"
    );
    let ancient = connect(&["-tls1_1"]).await.unwrap();
    assert!(ancient.contains("Cipher is (NONE)"), "{ancient}");
    server.stop().await;
}
