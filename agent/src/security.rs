//! Access to the servers of the agent: the addresses that they may listen on, tokens, and TLS.

use std::{fmt, fs, hint::black_box, net::SocketAddr, path::Path, sync::Arc};

use crate::error::AgentError;

/// Word before the token in the header `authorization`.
const SCHEME: &str = "Bearer";

/// Token that clients send in the header `authorization: Bearer TOKEN`. Its text is never shown.
#[derive(Clone)]
pub struct BearerToken(Arc<str>);

impl BearerToken {
    /// Creates a token from its text. White space around it is removed.
    ///
    /// # Errors
    ///
    /// [`AgentError::InvalidToken`] if it is empty or has other characters than visible ASCII.
    pub fn new(text: &str) -> Result<Self, AgentError> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(AgentError::InvalidToken);
        }
        Ok(Self(text.into()))
    }

    /// Reads a token from a file.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unreadable`], and those of [`new`](Self::new).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, AgentError> {
        let path = path.as_ref();
        let text =
            fs::read_to_string(path).map_err(|source| AgentError::Unreadable { path: path.to_path_buf(), source })?;
        Self::new(&text)
    }

    /// Returns `true` if the value of the header `authorization` contains this token. The time that it takes does not
    /// depend on the place of the first difference.
    pub(crate) fn admits(&self, authorization: Option<&[u8]>) -> bool {
        let Some((scheme, given)) = authorization.and_then(|value| value.split_at_checked(SCHEME.len())) else {
            return false;
        };
        let Some(given) = given.strip_prefix(b" ") else { return false };
        scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) && equal(given.trim_ascii(), self.0.as_bytes())
    }
}

/// Compares two texts; the time depends on their lengths only.
fn equal(one: &[u8], other: &[u8]) -> bool {
    let difference = one.iter().zip(other).fold(0, |found, (a, b)| black_box(found | (a ^ b)));
    one.len() == other.len() && difference == 0
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(..)")
    }
}

/// Certificate and key of a server, and the authority of the clients that it admits.
#[cfg(feature = "tls")]
#[derive(Clone)]
pub struct TlsIdentity {
    pub(crate) certificates: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) client_authority: Option<Vec<u8>>,
}

#[cfg(feature = "tls")]
impl TlsIdentity {
    /// Creates an identity from a chain of certificates and its key, both as PEM.
    pub fn new(certificates: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        Self { certificates: certificates.into(), key: key.into(), client_authority: None }
    }

    /// Admits only clients with a certificate of this authority, as PEM. Default: all clients.
    #[must_use]
    pub fn client_authority(mut self, authority: impl Into<Vec<u8>>) -> Self {
        self.client_authority = Some(authority.into());
        self
    }
}

#[cfg(feature = "tls")]
impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let client_authority = self.client_authority.is_some();
        f.debug_struct("TlsIdentity").field("client_authority", &client_authority).finish_non_exhaustive()
    }
}

/// Restriction of the use of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Protection {
    /// None: only programs of this host may reach it.
    #[default]
    None,
    /// TLS or a token.
    Restricted,
    /// None, which the configuration permits.
    Waived,
}

/// Checks that a server may listen on an address.
pub(crate) fn check_exposure(address: SocketAddr, protection: Protection) -> Result<(), AgentError> {
    match protection {
        Protection::None if !address.ip().to_canonical().is_loopback() => Err(AgentError::Exposed { address }),
        Protection::None | Protection::Restricted | Protection::Waived => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_compared_as_a_whole() {
        let token = BearerToken::new(" s3cret\n").unwrap();
        for (header, admitted) in [
            (Some("Bearer s3cret"), true),
            (Some("bearer s3cret"), true),
            (Some("Bearer s3cre"), false),
            (Some("Bearer s3cret2"), false),
            (Some("Bearer "), false),
            (Some("Bearer"), false),
            (Some("Basic s3cret"), false),
            (Some("Bearers3cret"), false),
            (Some(""), false),
            (None, false),
        ] {
            assert_eq!(token.admits(header.map(str::as_bytes)), admitted, "{header:?}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert!(!format!("{:?}", BearerToken::new("s3cret").unwrap()).contains("s3cret"));
        #[cfg(feature = "tls")]
        assert_eq!(format!("{:?}", TlsIdentity::new("a", "b")), "TlsIdentity { client_authority: false, .. }");
    }

    #[test]
    fn a_token_without_visible_characters_is_refused() {
        for text in ["", " \n", "two words", "tö"] {
            assert!(matches!(BearerToken::new(text), Err(AgentError::InvalidToken)), "{text:?}");
        }
    }

    #[test]
    fn a_token_is_read_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let missing = BearerToken::from_file(&path).unwrap_err();
        assert!(missing.to_string().contains("token"), "{missing}");
        fs::write(&path, "s3cret\n").unwrap();
        assert!(BearerToken::from_file(&path).unwrap().admits(Some(b"Bearer s3cret")));
    }

    #[test]
    fn other_hosts_are_served_under_a_restriction_only() {
        for (address, protection, permitted) in [
            ("127.0.0.1:1", Protection::None, true),
            ("[::1]:1", Protection::None, true),
            ("[::ffff:127.0.0.1]:1", Protection::None, true),
            ("0.0.0.0:1", Protection::None, false),
            ("10.0.0.1:1", Protection::None, false),
            ("[::]:1", Protection::None, false),
            ("10.0.0.1:1", Protection::Restricted, true),
            ("10.0.0.1:1", Protection::Waived, true),
        ] {
            let checked = check_exposure(address.parse().unwrap(), protection);
            assert_eq!(checked.is_ok(), permitted, "{address} {protection:?}");
        }
    }
}
