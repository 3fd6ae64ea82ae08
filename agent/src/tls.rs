//! Connections over TLS. The handshake takes place in the first reads and writes of a connection, so that no other one
//! waits for it, and its deadline is that of the connection's beginning. Read `connections.rs` next.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio_rustls::{Accept, TlsAcceptor, server};

use crate::{error::AgentError, security::TlsIdentity};

/// Protocol that a server negotiates.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    /// Name in the negotiation (RFC 7301, section 6; RFC 9113, section 3.2).
    fn name(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

/// Maximum bytes that wait in a connection for the system to take them.
const BUFFER: usize = 16 << 10;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Server side of TLS, shared by its connections.
#[derive(Clone)]
pub(crate) struct TlsServer(TlsAcceptor);

impl std::fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsServer(..)")
    }
}

impl TlsServer {
    /// Creates the server side for one protocol.
    ///
    /// # Errors
    ///
    /// [`AgentError::Tls`] if the certificates or the key cannot be used.
    pub(crate) fn new(identity: &TlsIdentity, protocol: Protocol) -> Result<Self, AgentError> {
        let mut config = config(identity).map_err(AgentError::Tls)?;
        config.alpn_protocols = vec![protocol.name().to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Returns a connection whose handshake has not begun.
    pub(crate) fn accept(&self, stream: TcpStream) -> TlsStream {
        TlsStream::Handshake(Box::new(self.0.accept_with(stream, |tls| tls.set_buffer_limit(Some(BUFFER)))))
    }
}

fn config(identity: &TlsIdentity) -> Result<ServerConfig, Cause> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match &identity.client_authority {
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(authority)? {
                roots.add(certificate)?;
            }
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?,
            )
        }
        None => builder.with_no_client_auth(),
    };
    let key = PrivateKeyDer::from_pem_slice(&identity.key)?;
    Ok(builder.with_single_cert(certificates(&identity.certificates)?, key)?)
}

/// Reads certificates, of which there is at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Cause> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() { Err("there is no certificate in the PEM text".into()) } else { Ok(certificates) }
}

/// A connection over TLS.
pub(crate) enum TlsStream {
    /// The handshake has not ended.
    Handshake(Box<Accept<TcpStream>>),
    /// The handshake has ended.
    Open(Box<server::TlsStream<TcpStream>>),
    /// The handshake has failed.
    Failed,
}

impl TlsStream {
    /// Waits for the end of the handshake.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut server::TlsStream<TcpStream>>>> {
        if let Self::Handshake(accept) = self {
            match ready!(Pin::new(accept.as_mut()).poll(cx)) {
                Ok(stream) => *self = Self::Open(Box::new(stream)),
                Err(error) => {
                    *self = Self::Failed;
                    return Poll::Ready(Err(error));
                }
            }
        }
        match self {
            Self::Open(stream) => Poll::Ready(Ok(Pin::new(stream.as_mut()))),
            Self::Handshake(_) | Self::Failed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Open(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Self::Handshake(_) | Self::Failed => Poll::Ready(Ok(())),
        }
    }
}
