use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use super::{Configured, Failure};
use crate::settings::Settings;
use crate::tls::certificates;

/// How long the service may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks `/healthz` of the service that these options start, over HTTP/1.1 and, where it serves TLS, over that.
///
/// # Errors
/// No answer, or one other than 200.
pub fn run(options: Configured) -> Result<(), Failure> {
    ask_service(&options.settings()?).map_err(in_words)
}

/// A socket that waited in vain reports what it was told, not what that means.
fn in_words(error: Failure) -> Failure {
    match error.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            format!("no answer within {} seconds", PATIENCE.as_secs()).into()
        }
        _ => error,
    }
}

fn ask_service(settings: &Settings) -> Result<(), Failure> {
    let mut address = settings.listen;
    if address.ip().is_unspecified() {
        // Listening everywhere includes the loopback address of the same family.
        let loopback = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
        address.set_ip(loopback.parse()?);
    }
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let Some(tls) = &settings.tls else {
        return ask(stream, address);
    };
    match ask(StreamOwned::new(pinned(&tls.certificate, address)?, stream), address) {
        // It is alive and asks for a certificate that we have not.
        Err(error) if tls.client_ca.is_some() && wants_certificate(error.as_ref()) => Ok(()),
        answer => answer,
    }
}

fn ask(mut stream: impl Read + Write, address: SocketAddr) -> Result<(), Failure> {
    write!(
        stream,
        "GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    stream.flush()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    if &head == b"HTTP/1.1 200" {
        return Ok(());
    }
    Err(format!("{address} answered '{}'", String::from_utf8_lossy(&head)).into())
}

fn wants_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
    let alert = inner.and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(
        alert,
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired))
    )
}

/// A connection that trusts the certificate in this file and no other: it is our own, made for other names than a loopback
/// address.
fn pinned(certificate: &Path, address: SocketAddr) -> Result<ClientConnection, Failure> {
    let provider = Arc::new(ring::default_provider());
    let expected = certificates(certificate)?.into_iter().next();
    let pinned = Pinned {
        expected: expected.ok_or("no certificate")?,
        provider: provider.clone(),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    Ok(ClientConnection::new(Arc::new(config), ServerName::from(address.ip()))?)
}

#[derive(Debug)]
struct Pinned {
    expected: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if end_entity.as_ref() == self.expected.as_ref() {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(
            "another certificate answered than the configured one".to_owned(),
        ))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
