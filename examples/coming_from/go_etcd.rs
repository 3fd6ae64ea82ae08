//! The example of fireflycore's `invocation`, with etcd as its source. See `docs/coming-from.md`.

use std::{error::Error, sync::Arc, time::Duration};

use enlist_etcd::{Etcd, Fireflycore};
use enlist_examples::greeter::{GreeterClient, HelloRequest};
use enlist_grpc::{Callee, ConnectionManager, Invocation, ManagerOptions};
use tonic::Request;

/// As `json.Marshal(invocation.Conf{…})` writes it. What is empty or 0 has its default.
const CONF: &str = r#"{"namespace":"default","default_port":9000,"cluster_domain":"svc.cluster.local",
    "resolver_scheme":"dns","prefer_service_dns":false,"cache_ttl":5000000000}"#;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // etcd.New(&etcd.Conf{Endpoint: …}); the layout reads `{namespace}/{env}/{service}/…`.
    let etcd = Etcd::from_env()?.layout(Fireflycore::new("")?).connect().await?;

    // invocation.NewConnectionManager(client, conf, options)
    let invocation: Invocation = serde_json::from_str(CONF)?;
    let manager = ConnectionManager::from_resolver(Arc::new(etcd.clone()), invocation, ManagerOptions::new())?;

    // invocation.ServiceRef{Service: "auth", Namespace: "default", Env: "dev"}
    let auth = Callee::parse("default/auth")?.in_environment("dev");

    // invoker.Invoke(ctx, ref, method, req, resp, WithInvocationContext(InvocationContext{Timeout: 3 * time.Second}))
    let mut client = GreeterClient::new(manager.channel(&auth)?);
    let mut request = Request::new(HelloRequest { name: "world".to_owned() });
    request.set_timeout(Duration::from_secs(3));
    request.metadata_mut().insert("x-firefly-app-id", "shop".parse()?);
    let reply = client.hello(request).await?;
    println!("{}", reply.get_ref().text);

    // manager.Close(), cli.Close()
    manager.close(Duration::from_secs(5)).await?;
    etcd.close().await?;
    Ok(())
}
