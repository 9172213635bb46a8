//! TLS towards NBD servers: X.509 credentials, and the connection's records over a socket with a deadline.
//!
//! TLS 1.2 and 1.3 by rustls. A client that has credentials never goes on without encryption.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::{Error, Result};

/// What a client shows and trusts, as PEM text.
#[derive(Clone, Copy, Default)]
pub struct TlsFiles<'a> {
    /// Certificates of the authorities that sign servers.
    pub authorities: &'a [u8],
    /// Certificates that are no longer good.
    pub revoked: Option<&'a [u8]>,
    /// The client's certificate, with those between it and its authority, and its key.
    pub identity: Option<(&'a [u8], &'a [u8])>,
    /// Whether the server's certificate is checked. Without it anybody in between can read and change everything.
    pub verify_peer: bool,
}

/// Credentials for one server.
#[derive(Clone)]
pub struct NbdTls {
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
}

impl fmt::Debug for NbdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdTls")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl NbdTls {
    /// Takes credentials for the server of this name: the one that its certificate must be for.
    ///
    /// # Errors
    /// `InvalidArgument` for files that hold no certificates or keys, and for a name that is none.
    pub fn new(files: &TlsFiles<'_>, server: &str) -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::invalid("no usable TLS version").because(e))?;
        let builder = builder.dangerous();
        let builder = match files.verify_peer {
            true => builder.with_custom_certificate_verifier(verifier(files, provider)?),
            false => builder.with_custom_certificate_verifier(Arc::new(Anybody(provider))),
        };
        let config = match files.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| unusable("private key", e))?;
                let chain = certificates(chain, "client certificate")?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|e| unusable("client certificate or private key", e))?
            }
        };
        let name = ServerName::try_from(server.to_owned()).map_err(|_| {
            let server = server.escape_debug();
            Error::invalid(format!("\"{server}\" is no name that a certificate could be for"))
        })?;
        Ok(Self {
            config: Arc::new(config),
            server: name,
        })
    }

    /// Begins a connection.
    pub(super) fn connection(&self) -> Result<Box<ClientConnection>> {
        let connection = ClientConnection::new(self.config.clone(), self.server.clone());
        connection
            .map(Box::new)
            .map_err(|e| Error::invalid("TLS cannot begin").because(e))
    }
}

fn unusable(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::invalid(format!("the {what} cannot be used")).because(error)
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<std::result::Result<Vec<_>, _>>();
    let found = found.map_err(|e| unusable(what, e))?;
    if found.is_empty() {
        return Err(Error::invalid(format!("there is no {what} in the file")));
    }
    Ok(found)
}

fn verifier(files: &TlsFiles<'_>, provider: Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(files.authorities, "authority's certificate")? {
        roots
            .add(certificate)
            .map_err(|e| unusable("authority's certificate", e))?;
    }
    let revoked = CertificateRevocationListDer::pem_slice_iter(files.revoked.unwrap_or_default());
    let revoked = revoked.collect::<std::result::Result<Vec<_>, _>>();
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(revoked.map_err(|e| unusable("list of revoked certificates", e))?)
        .build()
        .map_err(|e| unusable("list of authorities", e))
}

/// Takes any certificate: `verify-peer=off`. The signatures of the handshake are still checked.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Exchanges records until the connection is set up.
pub(super) fn handshake(tls: &mut ClientConnection, socket: &mut (impl Read + Write)) -> io::Result<()> {
    while tls.is_handshaking() {
        send(tls, socket)?;
        if tls.is_handshaking() {
            receive(tls, socket)?;
        }
    }
    send(tls, socket)
}

/// Reads some bytes; 0 when the server ended the connection in due form.
pub(super) fn read(tls: &mut ClientConnection, socket: &mut (impl Read + Write), buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match tls.reader().read(buf) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        receive(tls, socket)?;
        send(tls, socket)?;
    }
}

/// Writes some bytes, and everything that is waiting.
pub(super) fn write(tls: &mut ClientConnection, socket: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
    let taken = tls.writer().write(bytes)?;
    send(tls, socket)?;
    Ok(taken)
}

fn send(tls: &mut ClientConnection, socket: &mut impl Write) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(socket)?;
    }
    Ok(())
}

fn receive(tls: &mut ClientConnection, socket: &mut (impl Read + Write)) -> io::Result<()> {
    if tls.read_tls(socket)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if let Err(error) = tls.process_new_packets() {
        // The alert tells the server why; the connection is over whether it arrives or not.
        let _ = send(tls, socket);
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    Ok(())
}
