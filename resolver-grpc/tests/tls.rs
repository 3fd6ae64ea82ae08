//! Channels over TLS, with settings that depend on the instance.

mod support;

use enlist::{Endpoint, Instance, RegisterOptions, Registry, TaskOwner};
use enlist_grpc::{Channel, InstanceState};
use support::{World, id, say, until, until_ready};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

#[tokio::test]
async fn each_instance_is_who_its_certificate_says() {
    let own = rcgen::generate_simple_self_signed(vec!["greeter.test".to_owned()]).unwrap();
    let identity = Identity::from_pem(own.cert.pem(), own.signing_key.serialize_pem());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = TaskOwner::new();
    let stop = tasks.stop_signal();
    let server = tonic::transport::Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .unwrap()
        .add_service(support::echo("secure"))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned());
    tasks.spawn("server", async move { server.await.unwrap() }).unwrap();

    let world = World::new();
    let endpoint = Endpoint::parse(format!("grpcs://{address}")).unwrap();
    let instance = Instance::new(id("a"), [endpoint]).unwrap().with_metadata("tls-name", "greeter.test");
    let _registration = world.servers.register(&world.service, instance, RegisterOptions::new()).await.unwrap();

    // Nobody vouches for the certificate.
    let untrusting = Channel::new(&world.view()).unwrap();
    until(&untrusting, "a", InstanceState::Failing).await;
    let ca = Certificate::from_pem(own.cert.pem());
    let trusting = |name_of: fn(&Instance) -> String| {
        let ca = ca.clone();
        let builder = Channel::builder().settings(move |instance, settings| {
            let tls = ClientTlsConfig::new().ca_certificate(ca.clone()).domain_name(name_of(instance));
            Ok(settings.tls_config(tls)?)
        });
        builder.build(&world.view()).unwrap()
    };
    let channel = trusting(|instance| instance.metadata()["tls-name"].clone());
    until_ready(&channel, 1).await;
    assert_eq!(say(&channel, String::new()).await.unwrap(), "secure");
    // The name has to be the certificate's.
    let misled = trusting(|_| "other.test".to_owned());
    until(&misled, "a", InstanceState::Failing).await;
}
