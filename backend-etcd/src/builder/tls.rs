//! Options of TLS. Without a feature for TLS there are none, and their variables in the environment are refused.

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
use std::path::PathBuf;

use enlist::Error;

use super::EtcdBuilder;

#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
impl EtcdBuilder {
    /// Trusts only certificates of this authority (PEM file, read again at every dial). Needs `https` endpoints.
    pub fn ca_certificate(mut self, file: impl Into<PathBuf>) -> Self {
        self.tls.get_or_insert_default().ca = Some(file.into());
        self
    }

    /// Presents this certificate to etcd (PEM files, read again at every dial). Needs `https` endpoints.
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls.get_or_insert_default().identity = Some((certificate.into(), key.into()));
        self
    }

    /// Expects this name in the server's certificate instead of the endpoint's host.
    pub fn server_name(mut self, domain: impl Into<String>) -> Self {
        self.tls.get_or_insert_default().domain = Some(domain.into());
        self
    }

    /// Adds the options of the environment.
    pub(super) fn with_tls_variables(mut self, get: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        if let Some(ca) = get("ENLIST_CACERT") {
            self = self.ca_certificate(ca);
        }
        match (get("ENLIST_CERT"), get("ENLIST_KEY")) {
            (Some(certificate), Some(key)) => Ok(self.client_certificate(certificate, key)),
            (None, None) => Ok(self),
            _ => Err(Error::invalid_config("ENLIST_CERT", "it and ENLIST_KEY belong together")),
        }
    }
}

#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
impl EtcdBuilder {
    /// Refuses options of the environment.
    pub(super) fn with_tls_variables(self, get: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let mut variables = ["ENLIST_CACERT", "ENLIST_CERT", "ENLIST_KEY"].into_iter();
        match variables.find(|variable| get(variable).is_some()) {
            Some(variable) => Err(Error::invalid_config(variable, crate::client::connection::tls::NEEDS_FEATURE)),
            None => Ok(self),
        }
    }
}
