//! TLS of connections to etcd: the paths of its material, and the settings of a dial. Without a feature for TLS there
//! is no value of [`TlsFiles`], so code that has one needs no other check.

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
use std::path::PathBuf;

use enlist::Error;
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
use enlist::with_causes;
use tonic::transport::Endpoint;
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
use crate::error::text_cause;

/// Availability of TLS in this build.
pub(crate) const AVAILABLE: bool = cfg!(any(feature = "tls-ring", feature = "tls-aws-lc"));

/// Reason for the absence of TLS.
pub(crate) const NEEDS_FEATURE: &str = "TLS needs the feature `tls-ring` or `tls-aws-lc` of enlist-etcd";

/// Paths of TLS material. Files are read at every dial, so a renewed certificate is used without a restart.
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFiles {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) domain: Option<String>,
}

/// Paths of TLS material, of which there are none without a feature for TLS.
#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
#[derive(Clone, Debug)]
pub(crate) enum TlsFiles {}

/// Returns the material for `https` endpoints, which may be none but the presence of TLS.
///
/// # Errors
///
/// [`Error::InvalidConfig`] without a feature for TLS: tonic would send plaintext.
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
#[expect(clippy::unnecessary_wraps, reason = "as without TLS")]
pub(crate) fn for_https(files: Option<TlsFiles>) -> Result<TlsFiles, Error> {
    Ok(files.unwrap_or_default())
}

#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
pub(crate) fn for_https(files: Option<TlsFiles>) -> Result<TlsFiles, Error> {
    files.ok_or_else(|| Error::invalid_config("endpoints", NEEDS_FEATURE))
}

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
impl TlsFiles {
    /// Returns `true` if etcd is shown a certificate.
    pub(crate) fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// Applies TLS with the present content of the files.
    pub(crate) async fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, enlist::Cause> {
        let Self { ca, identity, domain } = self;
        let mut config = ClientTlsConfig::new();
        if let Some(path) = ca {
            config = config.ca_certificate(Certificate::from_pem(read(path).await?));
        }
        if let Some((certificate, key)) = identity {
            config = config.identity(Identity::from_pem(read(certificate).await?, read(key).await?));
        }
        if let Some(domain) = domain {
            config = config.domain_name(domain);
        }
        endpoint.tls_config(config).map_err(|error| text_cause(with_causes(&error).to_string()))
    }
}

#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
impl TlsFiles {
    pub(crate) fn has_identity(&self) -> bool {
        match *self {}
    }

    #[expect(clippy::unused_async, reason = "as with TLS")]
    pub(crate) async fn apply(&self, _: Endpoint) -> Result<Endpoint, enlist::Cause> {
        match *self {}
    }
}

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
async fn read(path: &PathBuf) -> Result<Vec<u8>, enlist::Cause> {
    tokio::fs::read(path).await.map_err(|error| text_cause(format!("{}: {error}", path.display())))
}
