//! Configuration file of the agent. Its keys are those of the table in docs/agent.md.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};

use crate::{args::AgentOptions, output::Failure};

/// Configuration of the agent. Absent values have the defaults of the options.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct AgentFile {
    pub(super) token_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) insecure: bool,
    pub(super) tls: Option<TlsFiles>,
    #[serde(default)]
    pub(super) xds: XdsSection,
    pub(super) http: Option<HttpSection>,
}

/// Files of the agent's certificate.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct TlsFiles {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_authority: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct XdsSection {
    pub(super) address: Option<SocketAddr>,
    pub(super) max_streams: Option<usize>,
    pub(super) max_names: Option<usize>,
    pub(super) max_services: Option<usize>,
    #[serde(default, deserialize_with = "duration")]
    pub(super) settle: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    pub(super) connect_timeout: Option<Duration>,
    #[serde(default)]
    pub(super) prefer_own_zone: bool,
    #[serde(default)]
    pub(super) envoy: Vec<EnvoySection>,
}

/// A listener of Envoy.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct EnvoySection {
    pub(super) address: SocketAddr,
    pub(super) service: String,
}

/// HTTP is served if this section exists.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct HttpSection {
    pub(super) address: Option<SocketAddr>,
    #[serde(default)]
    pub(super) hosts: Vec<String>,
    pub(super) max_connections: Option<usize>,
    pub(super) max_event_clients: Option<usize>,
    pub(super) max_views: Option<usize>,
    pub(super) max_services: Option<usize>,
}

/// Reads a time as the options of the command line are written: `60s`.
fn duration<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map(Some).map_err(de::Error::custom)
}

impl AgentFile {
    /// Returns the configuration of the command line, completed by that of the file which it names.
    pub(super) fn of(options: &AgentOptions) -> Result<Self, Failure> {
        let mut file = options.config.as_deref().map(Self::read).transpose()?.unwrap_or_default();
        file.override_with(options)?;
        Ok(file)
    }

    fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let text = fs::read_to_string(path).map_err(|error| Failure::new(format!("cannot read {shown}: {error}")))?;
        let mut file = Self::parse(&text).map_err(|fault| Failure::usage(format!("{shown}: {fault}")))?;
        file.resolve(path.parent().unwrap_or(Path::new("")));
        Ok(file)
    }

    /// Parses the text of a file. A fault has its line.
    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            format!("line {}: {}", before.matches('\n').count() + 1, error.message())
        })
    }

    /// Makes paths relative to the folder of the file.
    fn resolve(&mut self, folder: &Path) {
        let tls = self.tls.iter_mut().flat_map(|tls| {
            let TlsFiles { certificate, key, client_authority } = tls;
            [Some(certificate), Some(key), client_authority.as_mut()].into_iter().flatten()
        });
        for path in self.token_file.iter_mut().chain(tls) {
            *path = folder.join(&*path);
        }
    }

    /// Replaces what the command line states.
    fn override_with(&mut self, options: &AgentOptions) -> Result<(), Failure> {
        let AgentOptions {
            config: _,
            xds,
            http,
            http_host,
            token_file,
            tls_cert,
            tls_key,
            tls_client_ca,
            insecure,
            envoy,
        } = options;
        self.xds.address = xds.or(self.xds.address);
        if let Some(address) = http {
            self.http.get_or_insert_default().address = Some(*address);
        }
        if !http_host.is_empty() {
            let http = self.http.as_mut().ok_or_else(|| Failure::usage("--http-host needs --http"))?;
            http.hosts.clone_from(http_host);
        }
        self.token_file = token_file.clone().or(self.token_file.take());
        if let (Some(certificate), Some(key)) = (tls_cert.clone(), tls_key.clone()) {
            // The authority of the clients is an option of its own: replacing a certificate admits no one else.
            let client_authority = self.tls.take().and_then(|tls| tls.client_authority);
            self.tls = Some(TlsFiles { certificate, key, client_authority });
        }
        if let Some(authority) = tls_client_ca {
            let tls = self.tls.as_mut().ok_or_else(|| Failure::usage("--tls-client-ca needs --tls-cert"))?;
            tls.client_authority = Some(authority.clone());
        }
        self.insecure |= insecure;
        if !envoy.is_empty() {
            self.xds.envoy = envoy.iter().map(|listener| listener_of(listener)).collect::<Result<_, _>>()?;
        }
        Ok(())
    }
}

/// Reads the option `ADDRESS=SERVICE`.
fn listener_of(option: &str) -> Result<EnvoySection, Failure> {
    let fault = || Failure::usage(format!("--envoy {option}: write ADDRESS=SERVICE"));
    let (address, service) = option.split_once('=').ok_or_else(fault)?;
    let address = address.parse().map_err(|_| fault())?;
    Ok(EnvoySection { address, service: service.to_owned() })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    /// Returns the configuration of these arguments, with this text as the file `agent.toml` of a folder.
    fn configured(text: &str, arguments: &[&str]) -> (AgentFile, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        let head = ["enlist", "agent", "--config", path.to_str().unwrap()];
        let cli = Cli::parse_from(head.into_iter().chain(arguments.iter().copied()));
        let Command::Agent(options) = cli.command else { panic!("another command") };
        (AgentFile::of(&options).unwrap_or_else(|_| panic!("{text}")), folder)
    }

    #[test]
    fn the_documented_file_is_complete() {
        let page = include_str!("../../../docs/agent.md");
        let [text] = blocks(page, "toml")[..] else { panic!("one file") };
        let (file, folder) = configured(text, &[]);
        let tls = file.tls.unwrap();
        assert_eq!(tls.certificate, folder.path().join("agent.pem"));
        assert!(tls.client_authority.is_some() && file.token_file.is_some());
        let XdsSection {
            address,
            max_streams,
            max_names,
            max_services,
            settle,
            connect_timeout,
            prefer_own_zone,
            envoy,
        } = file.xds;
        assert!(address.is_some() && prefer_own_zone && envoy.len() == 1);
        assert_eq!((max_streams, max_names, max_services), (Some(10_000), Some(2_000), Some(10_000)));
        assert_eq!(settle, Some(enlist_agent::DEFAULT_XDS_SETTLE));
        assert_eq!(connect_timeout, Some(enlist_agent::DEFAULT_XDS_CONNECT_TIMEOUT));
        let HttpSection { address, hosts, max_connections, max_event_clients, max_views, max_services } =
            file.http.unwrap();
        assert!(address.is_some() && hosts == ["registry.internal"]);
        assert_eq!((max_connections, max_event_clients), (Some(2_000), Some(1_000)));
        assert_eq!((max_views, max_services), (Some(1_000), Some(2_000)));
    }

    /// Returns the blocks of a language in a page.
    fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
        let begin = format!("```{language}\n");
        page.split(&begin).skip(1).map(|rest| rest.split_once("```").unwrap().0).collect()
    }

    /// Returns the keys of a section of a unit that its documentation may have (systemd.unit(5), systemd.service(5),
    /// systemd.exec(5), systemd.kill(5), systemd.resource-control(5)). systemd ignores unknown ones with a warning.
    fn unit_keys(section: &str) -> &'static [&'static str] {
        match section {
            "[Unit]" => &["Description", "Documentation", "After", "Wants", "Requires"],
            "[Service]" => &[
                "ExecStart",
                "Environment",
                "LoadCredential",
                "DynamicUser",
                "Restart",
                "RestartSec",
                "TimeoutStopSec",
                "LimitNOFILE",
                "MemoryMax",
                "NoNewPrivileges",
                "ProtectSystem",
                "ProtectHome",
                "PrivateTmp",
                "PrivateDevices",
                "RestrictAddressFamilies",
                "SystemCallFilter",
            ],
            "[Install]" => &["WantedBy"],
            _ => &[],
        }
    }

    #[test]
    fn the_documented_deployments_are_valid() {
        let page = include_str!("../../../docs/agent-deployment.md");
        let ([unit], [manifest]) = (&blocks(page, "ini")[..], &blocks(page, "yaml")[..]) else { panic!("one of each") };
        let mut section = "";
        for line in unit.lines().filter(|line| !line.is_empty()) {
            if line.starts_with('[') {
                section = line;
                continue;
            }
            let (key, value) = line.split_once('=').unwrap();
            assert!(unit_keys(section).contains(&key) && !value.is_empty(), "{section} {line}");
        }
        let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let command = manifest.lines().find_map(|line| line.trim().strip_prefix("command: ")).unwrap();
        let command: Vec<String> = serde_json::from_str(command).unwrap();
        for arguments in [start.split(' ').map(str::to_owned).collect(), command] {
            let cli = Cli::try_parse_from(&arguments).unwrap();
            let Command::Agent(options) = cli.command else { panic!("{arguments:?}") };
            assert_eq!(options.config.as_deref(), Some(Path::new("/etc/enlist/agent.toml")));
        }
        let inner = manifest.split_once("agent.toml: |\n").unwrap().1.split_once("\n---").unwrap().0;
        let inner: Vec<_> = inner.lines().map(str::trim).collect();
        for text in blocks(page, "toml").into_iter().map(str::to_owned).chain([inner.join("\n")]) {
            let file = AgentFile::parse(&text).unwrap();
            assert!(file.xds.address.is_some() && file.xds.prefer_own_zone);
        }
    }

    #[test]
    fn options_take_precedence_over_the_file() {
        let text = "token-file = \"a\"\n[xds]\naddress = \"127.0.0.1:1\"\nmax-names = 7\n";
        let arguments = ["--xds", "127.0.0.1:2", "--http", "127.0.0.1:3", "--http-host", "h", "--token-file", "b"];
        let (file, _folder) = configured(text, &arguments);
        assert_eq!((file.xds.address, file.xds.max_names), (Some(([127, 0, 0, 1], 2).into()), Some(7)));
        assert_eq!(file.token_file.as_deref(), Some(Path::new("b")));
        let http = file.http.unwrap();
        assert_eq!((http.address, http.hosts), (Some(([127, 0, 0, 1], 3).into()), vec!["h".to_owned()]));
    }

    #[test]
    fn a_replaced_certificate_keeps_the_authority_of_clients() {
        let text = "[tls]\ncertificate = \"a\"\nkey = \"b\"\nclient-authority = \"c\"\n";
        let (file, folder) = configured(text, &["--tls-cert", "d", "--tls-key", "e"]);
        let tls = file.tls.unwrap();
        assert_eq!((tls.certificate, tls.key), (PathBuf::from("d"), PathBuf::from("e")));
        assert_eq!(tls.client_authority, Some(folder.path().join("c")));
    }

    #[test]
    fn a_fault_has_its_line() {
        for (text, fault) in [
            ("[xds]\nmax-name = 1\n", "line 2: unknown field `max-name`"),
            ("\n\n[xd]\n", "line 3: unknown field `xd`"),
            ("[xds]\naddress = \"localhost\"\n", "line 2: invalid socket address"),
            ("[xds]\nmax-names = -1\n", "line 2: "),
            ("[xds]\nsettle = \"1\"\n", "line 2: "),
            ("[tls]\nkey = \"k\"\n", "line 1: missing field `certificate`"),
            ("[http]\nhosts = [1]\n", "line 2: "),
            ("[http\n", "line 1: "),
        ] {
            let found = AgentFile::parse(text).unwrap_err();
            assert!(found.starts_with(fault), "{text:?}: {found}");
        }
    }
}
