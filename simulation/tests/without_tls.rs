//! Refusals of the etcd backend in a build without TLS. This package has such a build, if it is built alone.

use std::{env, process::Command};

use enlist::Error;
use enlist_etcd::Etcd;

/// Variable with the option that the child has to refuse.
const REFUSED: &str = "ENLIST_TEST_REFUSED";

fn assert_refused(error: &Error, option: &str) {
    assert!(matches!(error, Error::InvalidConfig { field, .. } if *field == option), "{option}: {error:?}");
    assert!(error.to_string().contains("feature `tls-ring`"), "{error}");
}

#[test]
#[ignore = "other packages build the backend with TLS: cargo xtask test"]
fn https_is_refused_without_a_feature() {
    for endpoint in ["https://h:1", "https://127.0.0.1"] {
        assert_refused(&Etcd::builder([endpoint]).build().expect_err("no TLS"), "endpoints");
    }
    assert!(Etcd::builder(["http://h:1", "h"]).build().is_ok());
}

#[test]
#[ignore = "other packages build the backend with TLS: cargo xtask test"]
fn tls_variables_are_refused_without_a_feature() {
    for name in ["ENLIST_CACERT", "ENLIST_CERT", "ENLIST_KEY"] {
        let mut child = Command::new(env::current_exe().expect("this program"));
        child.args(["--ignored", "--exact", "child"]).env_clear().env(name, "file.pem").env(REFUSED, name);
        let output = child.output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{name}: {text}");
    }
}

#[test]
#[ignore = "no test of its own: another one runs it as a process of its own"]
fn child() {
    let refused = env::var(REFUSED).expect("the option");
    assert_refused(&Etcd::from_env().expect_err("no TLS"), &refused);
}
