//! Certificates of an authority that exists for one test.

use std::{io, net::SocketAddr, sync::Arc};

use enlist_testkit::soon;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};
use tonic::transport::{self, Certificate, Channel, ClientTlsConfig};

/// Host of the certificates of agents.
pub(crate) const HOST: &str = "agent.test";

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        // OpenSSL takes a certificate with the name of its issuer for one that is signed by itself.
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Returns the configuration of a gRPC client that trusts it.
    pub(crate) fn trusting(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.pem()))
    }

    /// Issues a certificate. Returns it with its key.
    pub(crate) fn issue(&self, host: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Returns the configuration of a client that trusts the authority, with the certificate and key of its own.
pub(crate) fn client_config(authority: &Authority, own: Option<(String, String)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    match own {
        Some((certificate, key)) => {
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            config.with_client_auth_cert(vec![certificate], key).unwrap()
        }
        None => config.with_no_client_auth(),
    }
}

/// Connects to an agent over TLS.
pub(crate) async fn connect(address: SocketAddr, config: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(HOST).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
}

/// Returns a channel for gRPC to an agent over TLS.
pub(crate) async fn channel(address: SocketAddr, config: ClientTlsConfig) -> Result<Channel, transport::Error> {
    let endpoint = Channel::from_shared(format!("https://{address}")).unwrap();
    endpoint.tls_config(config.domain_name(HOST))?.connect().await
}

/// Requests the health of an agent over TLS, with the certificate and key of a client. Returns the response.
pub(crate) async fn health(
    address: SocketAddr,
    authority: &Authority,
    own: Option<(String, String)>,
) -> io::Result<String> {
    let exchange = async {
        let mut stream = connect(address, client_config(authority, own)).await?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\nhost: localhost\r\n\r\n").await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        Ok(response)
    };
    soon("a response, or the end of the connection", exchange).await
}
