//! Clients of etcd, built from the global options.

use std::{env, fs, path::Path};

use enlist::{LockName, Namespace, ServiceName, ServiceRef};
use enlist_etcd::{ConfigLayout, Etcd, EtcdBuilder, Tls, endpoint_url, is_clear_text, layout::LayoutOptions};

use crate::{
    args::{Global, Register, Token},
    output::{Failure, Output, To},
};

/// Variables with secrets, which programs that this process starts do not inherit.
pub(crate) const SECRETS: [&str; 2] = ["ENLIST_PASSWORD", "ENLIST_OWNER"];

impl Global {
    /// Returns the endpoints as URLs.
    fn urls(&self) -> Result<Vec<String>, Failure> {
        let tls = if self.cacert.is_some() || self.cert.is_some() { Tls::Configured } else { Tls::Absent };
        Ok(self.endpoints.iter().map(|endpoint| endpoint_url(endpoint, tls)).collect::<Result<_, _>>()?)
    }

    /// Returns user and password, if a user is given.
    fn credentials(&self) -> Result<Option<(String, String)>, Failure> {
        let password = match &self.password_file {
            Some(path) => Some(secret("password", path)?),
            None => env::var("ENLIST_PASSWORD").ok().filter(|password| !password.is_empty()),
        };
        match (&self.user, password) {
            (Some(user), Some(password)) => Ok(Some((user.clone(), password))),
            (Some(_), None) => Err(Failure::usage("--user needs --password-file, or ENLIST_PASSWORD")),
            (None, Some(_)) if self.password_file.is_some() => Err(Failure::usage("--password-file needs --user")),
            (None, _) => Ok(None),
        }
    }

    /// Returns the URLs to which the password is sent over a network in clear text.
    fn clear_text(&self) -> Result<Vec<String>, Failure> {
        let urls = if self.user.is_some() { self.urls()? } else { Vec::new() };
        Ok(urls.into_iter().filter(|url| is_clear_text(url)).collect())
    }

    /// Prints a warning if the password is sent in clear text.
    pub(crate) fn warn_of_clear_text(&self, output: Output) {
        // An invalid endpoint fails the command before anything is sent.
        let Ok(urls) = self.clear_text() else { return };
        if !urls.is_empty() {
            let warning = format!("the password is sent in clear text to {}; use https://", urls.join(", "));
            output.tell(To::Stderr, format!("enlist: {warning}"), &serde_json::json!({ "warning": warning }));
        }
    }

    /// Returns a builder with the global options.
    pub(crate) fn builder(&self) -> Result<EtcdBuilder, Failure> {
        let mut builder = Etcd::builder(self.urls()?).request_timeout(self.timeout);
        builder = builder.connect_timeout(self.timeout.min(enlist_etcd::DEFAULT_CONNECT_TIMEOUT));
        if self.max_range_keys.is_some() {
            builder = builder.max_range_keys(self.max_range_keys);
        }
        if self.max_range_bytes.is_some() {
            builder = builder.max_range_bytes(self.max_range_bytes);
        }
        builder = builder.keep_alive_interval(self.keep_alive_interval).keep_alive_timeout(self.keep_alive_timeout);
        if let Some((user, password)) = self.credentials()? {
            builder = builder.user(user, password);
        }
        if let Some(cacert) = &self.cacert {
            builder = builder.ca_certificate(cacert);
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            builder = builder.client_certificate(cert, key);
        }
        if let Some(prefix) = &self.config_prefix {
            builder = builder.config_layout(ConfigLayout::plain(prefix));
        }
        Ok(builder.named_layout(self.layout, &self.layout_options())?.named_lock_layout(self.lock_layout))
    }

    fn layout_options(&self) -> LayoutOptions {
        let mut options = LayoutOptions::new().environment(&self.layout_env);
        if let Some(prefix) = &self.prefix {
            options = options.prefix(prefix);
        }
        if let Some(port) = self.layout_port {
            options = options.default_port(port);
        }
        options
    }

    /// Returns a client. It connects in the background.
    pub(crate) fn client(&self) -> Result<Etcd, Failure> {
        Ok(self.builder()?.build()?)
    }

    pub(crate) fn namespace(&self) -> Result<Namespace, Failure> {
        Ok(Namespace::parse(&self.namespace)?)
    }

    pub(crate) fn service(&self, name: &str) -> Result<ServiceRef, Failure> {
        Ok(ServiceRef::new(self.namespace()?, ServiceName::parse(name)?))
    }

    pub(crate) fn lock(&self, name: &str) -> Result<LockName, Failure> {
        Ok(LockName::parse(name)?.within(self.namespace()?))
    }
}

impl Register {
    /// Returns the owner token.
    pub(crate) fn token(&self) -> Result<Option<String>, Failure> {
        match &self.owner_file {
            Some(path) => Ok(Some(secret("owner", path)?)),
            None => Ok(self.owner.as_ref().map(|Token(owner)| owner.clone()).filter(|owner| !owner.is_empty())),
        }
    }
}

/// Reads a secret from a file, without the end of the line.
fn secret(what: &str, path: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("the {what} file {} cannot be read: {error}", path.display())))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn the_command_accepts_endpoints_like_the_library() {
        for (endpoints, accepted, over_tls) in [
            ("127.0.0.1:2379", true, true),
            ("etcd", true, true),
            ("::1,[::1]:2379, 10.0.0.1", true, true),
            ("http://h:1", true, false),
            ("http://h:1,etcd", true, false),
            ("https://h:1", true, true),
            ("https://h:1,etcd", false, true),
            ("ftp://h:1", false, false),
            ("h:1/path", false, false),
            ("h:1,", false, false),
            ("root:secret@h:1", false, false),
        ] {
            for (arguments, expected) in [(&[][..], accepted), (&["--cacert", "ca.pem"], over_tls)] {
                let line = ["enlist", "--endpoints", endpoints]
                    .into_iter()
                    .chain(arguments.iter().copied())
                    .chain(["services"]);
                let command = Cli::try_parse_from(line).unwrap().global.client().is_ok();
                let library = Etcd::builder(endpoints.split(','));
                let library = if arguments.is_empty() { library } else { library.ca_certificate("ca.pem") };
                assert_eq!((command, library.build().is_ok()), (expected, expected), "{endpoints} {arguments:?}");
            }
        }
    }
}
