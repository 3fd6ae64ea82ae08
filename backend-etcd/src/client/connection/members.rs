//! The dialled members of the cluster.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::client::connection::{dial_settings::DialSettings, tls::TlsFiles};

/// Dialled members.
#[derive(Clone, Debug)]
pub(crate) enum Members {
    /// These URLs, in turn.
    Urls { urls: Vec<Endpoint>, tls: Option<TlsFiles>, settings: Option<DialSettings>, connect_timeout: Duration },
    /// A channel that the user made. It maintains its own connection.
    Fixed(Channel),
}

impl Members {
    /// Returns the URL of the member at this index.
    pub(crate) fn url(&self, at: usize) -> Option<http::Uri> {
        match self {
            Self::Urls { urls, .. } if !urls.is_empty() => Some(urls[at % urls.len()].uri().clone()),
            Self::Urls { .. } | Self::Fixed(_) => None,
        }
    }

    /// Returns the dialled URLs.
    pub(crate) fn urls(&self) -> Vec<http::Uri> {
        match self {
            Self::Urls { urls, .. } => urls.iter().map(|url| url.uri().clone()).collect(),
            Self::Fixed(_) => Vec::new(),
        }
    }

    /// Returns the index of the member with this URL.
    pub(crate) fn index_of(&self, url: &http::Uri) -> Option<usize> {
        match self {
            Self::Urls { urls, .. } => urls.iter().position(|other| other.uri() == url),
            Self::Fixed(_) => None,
        }
    }

    /// Returns the members that the cluster advertises, followed by the configured ones that are not among them:
    /// advertised URLs may be unreachable or outdated.
    pub(crate) fn with(&self, advertised: &[Endpoint]) -> Option<Self> {
        let Self::Urls { urls, tls, settings, connect_timeout } = self else { return None };
        let mut all: Vec<Endpoint> = Vec::new();
        for url in advertised.iter().chain(urls) {
            if all.iter().all(|other| other.uri() != url.uri()) {
                all.push(url.clone());
            }
        }
        let (tls, settings) = (tls.clone(), settings.clone());
        Some(Self::Urls { urls: all, tls, settings, connect_timeout: *connect_timeout })
    }
}
