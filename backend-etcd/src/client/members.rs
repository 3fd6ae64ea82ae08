//! The members of the cluster that are dialled, and the paths of the TLS material for that.

use std::{path::PathBuf, time::Duration};

use tonic::transport::{Channel, Endpoint};

use crate::client::dial_settings::DialSettings;

/// Paths of TLS material. Files are read at every dial, so a renewed certificate is used without a restart.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFiles {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) domain: Option<String>,
}

/// Members that are dialled.
#[derive(Clone, Debug)]
pub(crate) enum Members {
    /// These URLs, in turn.
    Urls { urls: Vec<Endpoint>, tls: Option<TlsFiles>, settings: Option<DialSettings>, connect_timeout: Duration },
    /// A channel that the user made; it has to look after itself.
    Fixed(Channel),
}

impl Members {
    /// The URL of the member at this place.
    pub(crate) fn url(&self, at: usize) -> Option<http::Uri> {
        match self {
            Self::Urls { urls, .. } if !urls.is_empty() => Some(urls[at % urls.len()].uri().clone()),
            Self::Urls { .. } | Self::Fixed(_) => None,
        }
    }

    /// The URLs that are dialled.
    pub(crate) fn urls(&self) -> Vec<http::Uri> {
        match self {
            Self::Urls { urls, .. } => urls.iter().map(|url| url.uri().clone()).collect(),
            Self::Fixed(_) => Vec::new(),
        }
    }

    /// The place of the member with this URL.
    pub(crate) fn place(&self, url: &http::Uri) -> Option<usize> {
        match self {
            Self::Urls { urls, .. } => urls.iter().position(|other| other.uri() == url),
            Self::Fixed(_) => None,
        }
    }

    /// The members that the cluster has, as they `advertise`, and then the configured ones that are not among them:
    /// what is advertised may be out of reach, or out of date.
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
