//! The client of the README of kitex's `registry-etcd`. See `docs/coming-from.md`.

use std::{error::Error, sync::Arc, time::Duration};

use enlist::{Directory, ServiceRef};
use enlist_etcd::{Etcd, Kitex};
use enlist_examples::greeter::{GreeterClient, HelloRequest};
use enlist_grpc::Channel;
use tonic::Request;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // r, err := etcd.NewEtcdResolver([]string{"127.0.0.1:2379"})
    let etcd = Etcd::from_env()?.layout(Kitex::default()).connect().await?;

    // client, err := echo.NewClient("echo", client.WithResolver(r))
    let view = Directory::new(Arc::new(etcd)).view(&ServiceRef::parse("echo")?);
    let mut client = GreeterClient::new(Channel::new(&view)?);
    loop {
        // ctx, cancel := context.WithTimeout(context.Background(), time.Second*3); resp, err := client.Echo(ctx, req)
        let mut request = Request::new(HelloRequest { name: "Hello".to_owned() });
        request.set_timeout(Duration::from_secs(3));
        match client.hello(request).await {
            Ok(reply) => println!("{}", reply.get_ref().text),
            Err(status) => println!("{status}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
