//! `enlist doctor`: the findings of [`enlist_etcd::diagnose`], with advice in terms of this command's options.

use std::path::Path;

use enlist_etcd::diagnose::{AuthFault, Check, EndpointFault, Finding, Status};
use serde_json::json;

use crate::{
    args::Global,
    output::{Failure, Output, Paint, Text, To},
};

pub(crate) async fn run(global: &Global, output: Output) -> Result<u8, Failure> {
    // Invalid options fail as for every command, for example a password in a URL.
    global.client()?;
    let files = [&global.cacert, &global.cert, &global.key];
    files.into_iter().flatten().try_for_each(|path| readable(path))?;
    let mut failed = false;
    let print = |finding: Finding| {
        failed |= finding.status() == Status::Failed;
        print(&finding, output)
    };
    global.builder()?.diagnose(&global.namespace()?, print).await?;
    Ok(u8::from(failed))
}

fn readable(path: &Path) -> Result<(), Failure> {
    let read = std::fs::read(path);
    read.map(drop).map_err(|error| Failure::usage(format!("{} cannot be read: {error}", path.display())))
}

fn print(finding: &Finding, output: Output) -> Result<(), Failure> {
    let (check, status, advice) = (finding.check().to_string(), finding.status(), advice(finding));
    let (word, detail) = (status.to_string(), finding.to_string());
    let paint = match status {
        Status::Ok => Paint::Good,
        Status::Skipped => Paint::Faint,
        _ => Paint::Bad,
    };
    let advice_text = advice.as_deref().map_or_else(String::new, |advice| format!("; {advice}"));
    let object = json!({ "check": check, "status": word, "detail": detail, "advice": advice });
    let line = Text::painted(paint, format!("{word:<8}"), format!(" {check}: {detail}{advice_text}"));
    output.line(To::Stdout, line, &object)?;
    Ok(())
}

/// Returns the advice about a finding, if there is any.
fn advice(finding: &Finding) -> Option<String> {
    let text = match finding {
        Finding::EndpointFails { fault, .. } => advice_on_endpoint(*fault),
        Finding::ClearTextPassword { .. } => "use https://, and enable TLS in etcd",
        Finding::NotAccepted { fault, .. } => match fault {
            AuthFault::UserRequired => "set --user and --password-file",
            AuthFault::WrongUser => "check --user and --password-file",
            AuthFault::AuthenticationOff => "omit --user, or enable authentication in etcd",
            _ => "check that the cluster has a leader",
        },
        Finding::DefectiveVersion { fixed_in, .. } => return advice_on_version(fixed_in),
        Finding::VersionHidden { fixed_in } => {
            return advice_on_version(fixed_in).map(|fixed| format!("connect as root, or upgrade etcd: {fixed}"));
        }
        Finding::VersionUnknown { .. } => "run the check again",
        Finding::Refused { check: Check::Lease, .. } => {
            "leases need no permission; check that the cluster has a leader and free space"
        }
        Finding::Refused { prefix, .. } => {
            let prefix = prefix.escape_ascii();
            return Some(format!("grant the user's role readwrite on all keys with the prefix {prefix}"));
        }
        Finding::OutOfSpace => "compact and defragment it, then `etcdctl alarm disarm`",
        Finding::Alarm => "see `etcdctl alarm list`",
        Finding::AlarmsUnknown { cause: Some(_) } => "connect as root to see alarms",
        Finding::Latency { .. } if finding.status() == Status::Warning => "use a closer member, or longer TTLs",
        Finding::ReadsUnanswered => "check the disk and network of etcd",
        _ => return None,
    };
    Some(text.to_owned())
}

fn advice_on_endpoint(fault: EndpointFault) -> &'static str {
    match fault {
        EndpointFault::UnknownHost => "correct --endpoints, or check the name in the DNS of this machine",
        EndpointFault::NotReachable => "start etcd there, or correct --endpoints",
        EndpointFault::Silent => "check the firewall, or correct --endpoints",
        EndpointFault::NoTls => "use http://, or enable TLS in etcd",
        EndpointFault::TlsExpected => "use https://",
        EndpointFault::UntrustedCertificate => "set --cacert to the authority that signed the certificate",
        EndpointFault::WrongName => "use a name that is in the certificate",
        EndpointFault::ExpiredCertificate => "renew the certificate of etcd",
        EndpointFault::ClosedAfterHandshake => "etcd may require a client certificate; set --cert and --key",
        EndpointFault::NotServing => "check that the member has a leader and is no learner",
        EndpointFault::NotEtcd => "another program may use this port; correct --endpoints",
        _ => "check --cacert, --cert and --key",
    }
}

/// Returns a sentence with the releases that have all fixes.
fn advice_on_version(fixed_in: &[&str]) -> Option<String> {
    let (last, others) = fixed_in.split_last()?;
    Some(match others {
        [] => format!("{last} has all fixes"),
        others => format!("{} and {last} have all fixes", others.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_names_the_options_of_this_command() {
        let endpoint = |fault| Finding::EndpointFails { url: "u".to_owned(), fault, cause: "c".to_owned() };
        let user = |fault| Finding::NotAccepted { fault, cause: "c".to_owned() };
        let refused = |check| Finding::Refused { check, prefix: b"a/".to_vec(), cause: "c".to_owned() };
        for (finding, expected) in [
            (endpoint(EndpointFault::NotReachable), "start etcd there, or correct --endpoints"),
            (endpoint(EndpointFault::UntrustedCertificate), "--cacert"),
            (endpoint(EndpointFault::ClosedAfterHandshake), "--cert and --key"),
            (endpoint(EndpointFault::Tls), "check --cacert, --cert and --key"),
            (user(AuthFault::UserRequired), "set --user and --password-file"),
            (user(AuthFault::Silent), "check that the cluster has a leader"),
            (refused(Check::Lease), "leases need no permission"),
            (refused(Check::Watch), "readwrite on all keys with the prefix a/"),
        ] {
            let advice = advice(&finding).unwrap();
            assert!(advice.contains(expected), "{finding:?}: {advice}");
        }
        assert_eq!(advice(&Finding::RequestsAccepted), None);
        assert_eq!(advice(&Finding::AlarmsUnknown { cause: None }), None);
    }

    #[test]
    fn advice_on_a_version_names_the_fixed_releases() {
        assert_eq!(advice_on_version(&["3.5.33"]).unwrap(), "3.5.33 has all fixes");
        let all = advice_on_version(&["3.5.33", "3.6.14", "3.7.1"]).unwrap();
        assert_eq!(all, "3.5.33, 3.6.14 and 3.7.1 have all fixes");
    }
}
