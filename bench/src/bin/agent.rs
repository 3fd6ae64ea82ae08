//! The agent of `enlist` as a measured program, with the commands of the control plane in Go
//! (`testkit/interop-go/xds/bench`). It serves HTTP as well.
//!
//! ```text
//! agent xds PREFIX
//! ```

use std::{net::Ipv4Addr, sync::Arc};

use enlist_agent::{Agent, HttpOptions, XdsOptions};
use enlist_bench::{
    driven::{self, Input},
    measure::Result,
};
use enlist_etcd::Etcd;

#[tokio::main]
async fn main() {
    driven::run(serve()).await;
}

async fn serve() -> Result {
    let mut input = Input::default();
    let etcd = Etcd::from_env()?.connect().await?;
    input.go().await?;
    let local = (Ipv4Addr::LOCALHOST, 0).into();
    let builder = Agent::builder(Arc::new(etcd)).xds(XdsOptions::new().address(local));
    let agent = builder.http(HttpOptions::new().address(local)).bind().await?;
    let http = agent.http_address().ok_or("HTTP is not served")?;
    println!("serves {} {}", agent.xds_address().port(), http.port());
    tokio::select! {
        () = agent.serve(std::future::pending()) => Ok(()),
        answered = input.answer() => answered,
    }
}
