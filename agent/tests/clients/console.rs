//! Texts of the console, whose scripts run in Node.

use std::fs;

use enlist_testkit::soon;
use tokio::process::Command;

use crate::supplied;

#[tokio::test]
#[ignore = "needs Node: cargo xtask clients"]
async fn the_console_states_what_the_agent_says() {
    let scripts = tempfile::tempdir().unwrap();
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/console")).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, scripts.path().join(path.file_name().unwrap())).unwrap();
    }
    fs::write(scripts.path().join("package.json"), r#"{ "type": "module" }"#).unwrap();
    let mut node = Command::new(supplied("ENLIST_CLIENT_NODE"));
    node.arg("--test").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/console/texts.mjs"));
    node.env("ENLIST_CONSOLE", scripts.path()).kill_on_drop(true);
    let output = soon("the tests end", node.output()).await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("# pass 17"), "{printed}");
}
