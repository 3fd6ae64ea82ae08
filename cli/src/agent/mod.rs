//! `enlist agent`: the registry for programs in other languages, over xDS and HTTP.

mod file;
mod open_files;

use std::{
    fs,
    io::IsTerminal as _,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use enlist_agent::{
    Agent, AgentError, BearerToken, DEFAULT_HTTP_PORT, DEFAULT_XDS_PORT, EnvoyListener, HttpOptions, TlsIdentity,
    XdsOptions,
};
use serde_json::json;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use self::file::{AgentFile, HttpSection, TlsFiles, XdsSection};
use crate::{
    args::{AgentOptions, Global},
    output::{Failure, Output, To},
    signals::Signals,
};

/// Serves until a signal, and then ends in order.
pub(crate) async fn run(global: &Global, options: &AgentOptions, output: Output) -> Result<u8, Failure> {
    let mut signals = Signals::ending()?;
    log_to_stderr();
    let AgentFile { token_file, insecure, tls, mut xds, mut http } = AgentFile::of(options)?;
    open_files::fit(&mut xds, http.as_mut(), output)?;
    let resolver = Arc::new(global.client()?);
    let token = token_file.as_deref().map(BearerToken::from_file).transpose()?;
    let access = Access { token, tls: tls.as_ref().map(identity).transpose()?, insecure };
    let mut builder = Agent::builder(resolver.clone()).queues(resolver).xds(xds_options(xds, &access));
    if let Some(http) = http {
        builder = builder.http(http_options(http, &access));
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
    agent.serve(async { _ = signals.next().await }).await;
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
    insecure: bool,
}

/// Reads the files of the agent's own identity.
fn identity(TlsFiles { certificate, key, client_authority }: &TlsFiles) -> Result<TlsIdentity, Failure> {
    let identity = TlsIdentity::new(read(certificate)?, read(key)?);
    match client_authority {
        Some(authority) => Ok(identity.client_authority(read(authority)?)),
        None => Ok(identity),
    }
}

fn http_options(section: HttpSection, access: &Access) -> HttpOptions {
    let HttpSection { address, hosts, max_connections, max_event_clients, max_views, max_services } = section;
    let mut http = HttpOptions::new().address(address.unwrap_or_else(|| local(DEFAULT_HTTP_PORT)));
    http = hosts.into_iter().fold(http, HttpOptions::host);
    http = with(http, max_connections, HttpOptions::max_connections);
    http = with(http, max_event_clients, HttpOptions::max_event_clients);
    http = with(http, max_views, HttpOptions::max_views);
    http = with(http, max_services, HttpOptions::max_services);
    http = with(http, access.token.clone(), HttpOptions::token);
    http = with(http, access.tls.clone(), HttpOptions::tls);
    if access.insecure { http.insecure() } else { http }
}

fn xds_options(section: XdsSection, access: &Access) -> XdsOptions {
    let XdsSection { address, max_streams, max_names, max_services, settle, connect_timeout, prefer_own_zone, envoy } =
        section;
    let mut xds = XdsOptions::new().address(address.unwrap_or_else(|| local(DEFAULT_XDS_PORT)));
    for listener in envoy {
        let name = listener.address.to_string();
        xds = xds.envoy(EnvoyListener::new(name, listener.address).route("/", listener.service));
    }
    xds = with(xds, max_streams, XdsOptions::max_streams);
    xds = with(xds, max_names, XdsOptions::max_names);
    xds = with(xds, max_services, XdsOptions::max_services);
    xds = with(xds, settle, XdsOptions::settle);
    xds = with(xds, connect_timeout, XdsOptions::connect_timeout);
    xds = with(xds, access.token.clone(), XdsOptions::token);
    xds = with(xds, access.tls.clone(), XdsOptions::tls);
    xds = if prefer_own_zone { xds.prefer_own_zone() } else { xds };
    if access.insecure { xds.insecure() } else { xds }
}

/// Sets an option, if it has a value.
fn with<O, V>(options: O, value: Option<V>, set: fn(O, V) -> O) -> O {
    match value {
        Some(value) => set(options, value),
        None => options,
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::new(enlist::with_causes(&error).to_string())
    }
}
