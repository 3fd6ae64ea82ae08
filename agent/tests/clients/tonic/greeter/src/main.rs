use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;
use tonic_xds::{XdsChannelBuilder, XdsChannelConfig, XdsUri};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let target = XdsUri::parse("xds:///greeter")?;
    let channel = XdsChannelBuilder::new(XdsChannelConfig::new(target)).build_grpc_channel()?;
    // A generated client takes the channel as well: `GreeterClient::new(channel)`.
    let mut client = Grpc::new(channel);
    for number in 0..10 {
        client.ready().await?;
        let path = PathAndQuery::from_static("/hello.Greeter/SayHello");
        let codec = ProstCodec::<String, String>::default();
        let greeting = client.unary(Request::new(format!("caller {number}")), path, codec).await?;
        println!("{}", greeting.into_inner());
    }
    Ok(())
}
