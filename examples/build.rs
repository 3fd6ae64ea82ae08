//! Compiles the protocol of the examples. Needs no protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    println!("cargo::rerun-if-changed=proto");
    let protocol = protox::compile(["greeter.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(protocol)?;
    Ok(())
}
