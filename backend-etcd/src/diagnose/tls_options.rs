//! TLS options of the plain client that a diagnosis uses.

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
use std::path::Path;

use enlist::Error;
use etcd_client::ConnectOptions;
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
use etcd_client::{Certificate, Identity};

use crate::client::connection::tls::TlsFiles;

/// TLS options, with the content of the files.
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
pub(super) struct TlsOptions(etcd_client::TlsOptions);

/// No TLS options.
#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
pub(super) struct TlsOptions;

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
impl TlsOptions {
    /// Reads the files.
    pub(super) async fn read(files: Option<TlsFiles>) -> Result<Self, Error> {
        let TlsFiles { ca, identity, domain } = files.unwrap_or_default();
        let mut tls = etcd_client::TlsOptions::new();
        if let Some(path) = ca {
            tls = tls.ca_certificate(Certificate::from_pem(pem("ca_certificate", &path).await?));
        }
        if let Some((certificate, key)) = identity {
            let option = "client_certificate";
            tls = tls.identity(Identity::from_pem(pem(option, &certificate).await?, pem(option, &key).await?));
        }
        if let Some(domain) = domain {
            tls = tls.domain_name(domain);
        }
        Ok(Self(tls))
    }

    /// Adds the options to those of a connection to an `https` URL.
    pub(super) fn apply(&self, options: ConnectOptions) -> ConnectOptions {
        options.with_tls(self.0.clone())
    }
}

#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
impl TlsOptions {
    #[expect(clippy::unused_async, reason = "as with TLS")]
    pub(super) async fn read(files: Option<TlsFiles>) -> Result<Self, Error> {
        match files {
            Some(files) => match files {},
            None => Ok(Self),
        }
    }

    #[expect(clippy::unused_self, reason = "as with TLS")]
    pub(super) fn apply(&self, options: ConnectOptions) -> ConnectOptions {
        options
    }
}

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
async fn pem(option: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let refused = |error| Error::invalid_config(option, format!("{} cannot be read: {error}", path.display()));
    tokio::fs::read(path).await.map_err(refused)
}
