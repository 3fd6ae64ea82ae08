//! `enlist agent`: the registry for programs in other languages, over xDS and HTTP.

use std::{fs, io::IsTerminal as _, net::SocketAddr, path::Path, sync::Arc};

use enlist_agent::{Agent, AgentError, BearerToken, EnvoyListener, HttpOptions, TlsIdentity, XdsOptions};
use serde_json::json;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    args::{AgentOptions, Global},
    output::{Failure, Output, To},
    signals::Signals,
};

/// Serves until a signal, and then ends in order.
pub(crate) async fn run(global: &Global, options: &AgentOptions, output: Output) -> Result<u8, Failure> {
    let mut signals = Signals::ending()?;
    log_to_stderr();
    let resolver = Arc::new(global.client()?);
    let access = options.access()?;
    let mut builder = Agent::builder(resolver.clone()).queues(resolver).xds(options.xds(&access)?);
    if let Some(http) = options.http(&access) {
        builder = builder.http(http);
    }
    let agent = builder.bind().await?;
    let xds = agent.xds_address();
    match agent.http_address() {
        Some(http) => {
            let scheme = if access.tls.is_some() { "https" } else { "http" };
            let text = format!("xDS is served on {xds}, HTTP on {scheme}://{http}");
            output.line(To::Stdout, text, &json!({ "xds": xds, "http": http }))?;
        }
        None => output.line(To::Stdout, format!("xDS is served on {xds}"), &json!({ "xds": xds }))?,
    }
    agent.serve(async { _ = signals.next().await }).await?;
    Ok(0)
}

/// Logs warnings, or what `RUST_LOG` selects: rejections by clients, and instances that they do not receive.
fn log_to_stderr() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    let stderr = std::io::stderr;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(stderr().is_terminal()).with_writer(stderr).init();
}

/// Restrictions of the access to both servers.
struct Access {
    token: Option<BearerToken>,
    tls: Option<TlsIdentity>,
}

impl AgentOptions {
    fn access(&self) -> Result<Access, Failure> {
        let token = self.token_file.as_ref().map(BearerToken::from_file).transpose()?;
        let mut tls = None;
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            let mut identity = TlsIdentity::new(read(certificate)?, read(key)?);
            if let Some(authority) = &self.tls_client_ca {
                identity = identity.client_authority(read(authority)?);
            }
            tls = Some(identity);
        }
        Ok(Access { token, tls })
    }

    /// Returns the options of HTTP; `None` if it is not to be served.
    fn http(&self, access: &Access) -> Option<HttpOptions> {
        let mut http = HttpOptions::new().address(self.http?);
        for name in &self.http_host {
            http = http.host(name);
        }
        if let Some(token) = &access.token {
            http = http.token(token.clone());
        }
        if let Some(identity) = &access.tls {
            http = http.tls(identity.clone());
        }
        Some(if self.insecure { http.insecure() } else { http })
    }

    fn xds(&self, access: &Access) -> Result<XdsOptions, Failure> {
        let mut xds = XdsOptions::new().address(self.xds);
        if let Some(token) = &access.token {
            xds = xds.token(token.clone());
        }
        if let Some(identity) = &access.tls {
            xds = xds.tls(identity.clone());
        }
        if self.insecure {
            xds = xds.insecure();
        }
        for listener in &self.envoy {
            let fault = || Failure::usage(format!("--envoy {listener}: write ADDRESS=SERVICE"));
            let (address, service) = listener.split_once('=').ok_or_else(fault)?;
            let address: SocketAddr = address.parse().map_err(|_| fault())?;
            xds = xds.envoy(EnvoyListener::new(address.to_string(), address).route("/", service));
        }
        Ok(xds)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::new(enlist::with_causes(&error).to_string())
    }
}
