//! Servers that start and stop in order.

mod support;

use std::{sync::Arc, time::Duration};

use enlist::{Deregistered, Endpoint, Graceful, Instance, RegisterOptions, RegistrationState, Resolver};
use enlist_grpc::{Channel, serve};
use enlist_testkit::{eventually, soon};
use support::{Server, World, begun, id, say, until_called, until_ready};
use tokio::{net::TcpListener, sync::oneshot};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

#[tokio::test]
async fn a_server_leaves_without_a_call_failing() {
    let world = Arc::new(World::new());
    let mut servers = Vec::new();
    for name in ["a", "b"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::try_from(listener.local_addr().unwrap()).unwrap();
        let instance = Instance::new(id(name), [endpoint]).unwrap();
        let router = tonic::transport::Server::builder().add_service(support::echo(name));
        let (stop, stopped) = oneshot::channel::<()>();
        let graceful = Graceful::new().propagation(Duration::from_millis(300)).deadline(Duration::from_secs(10));
        let server = serve(listener, router).services(["test.Echo"]).graceful(graceful).until(async {
            let _ = stopped.await;
        });
        let world = Arc::clone(&world);
        let run = begun(async move {
            server.register_and_run(&world.servers, &world.service, instance, RegisterOptions::new()).await
        });
        servers.push((stop, run));
    }
    // A watched health service keeps a stream open, which must not delay the server's end.
    let channel = world.channel(Channel::builder().health_check("test.Echo"), 2).await;
    until_called(&channel, &["a", "b"]).await;
    let calls_before: Vec<_> = channel.instances().iter().map(|one| one.calls).collect();
    let calls = support::calls_side_by_side(10, 1000, || say(&channel, "sleep 5".to_owned()));
    let (stop, run) = servers.remove(0);
    let leave = async {
        eventually("both are called", || async {
            let instances = channel.instances();
            let are_called = instances.iter().zip(&calls_before).all(|(one, before)| one.calls > before + 20);
            if are_called { Ok(()) } else { Err(instances) }
        })
        .await;
        stop.send(()).unwrap();
        run.await
    };
    let (failed, report) = soon("all calls", async { tokio::join!(calls, leave) }).await;
    assert!(failed.is_empty(), "{failed:?}");
    let report = report.unwrap();
    assert!(report.drained && matches!(report.deregistered, Ok(Deregistered::Removed)), "{report:?}");
    assert!(matches!(report.served, Some(Ok(()))), "{report:?}");
    until_ready(&channel, 1).await;
}

#[tokio::test]
async fn health_reports_not_serving_before_the_end() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let instance = Instance::new(id("a"), [Endpoint::try_from(address).unwrap()]).unwrap();
    let router = tonic::transport::Server::builder().add_service(support::echo("a"));
    let (stop, stopped) = oneshot::channel::<()>();
    let graceful = Graceful::new().propagation(Duration::from_secs(5));
    let server = serve(listener, router).services(["test.Echo"]).graceful(graceful);
    let reporter = server.health();
    let server = server.until(async {
        let _ = stopped.await;
    });
    let (servers, service) = (world.servers.clone(), world.service.clone());
    let run = begun(async move { server.register_and_run(&servers, &service, instance, RegisterOptions::new()).await });

    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let status = |service: &'static str| {
        let mut client = HealthClient::new(channel.clone());
        async move {
            let response = client.check(HealthCheckRequest { service: service.to_owned() }).await;
            response.map(|response| response.into_inner().status().as_str_name())
        }
    };
    assert_eq!(soon("a response", status("test.Echo")).await.unwrap(), "SERVING");
    reporter.set_service_status("test.Echo", tonic_health::ServingStatus::NotServing).await;
    assert_eq!(status("test.Echo").await.unwrap(), "NOT_SERVING");
    stop.send(()).unwrap();
    eventually("the whole server is about to leave", || async {
        match status("").await {
            Ok("NOT_SERVING") => Ok(()),
            other => Err(other),
        }
    })
    .await;
    // It still responds, so that clients have time to notice the state.
    let say = support::say(&channel, String::new()).await.unwrap();
    assert_eq!(say, "a");
    drop(channel);
    soon("the end", run).await.unwrap();
}

#[tokio::test]
async fn a_refused_registration_serves_nothing() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let router = tonic::transport::Server::builder().add_service(support::echo("b"));
    let options = RegisterOptions::new().on_conflict(enlist::OnConflict::Refuse);
    let refused =
        serve(listener, router).register_and_run(&world.servers, &world.service, servers[0].instance(), options);
    let refused = soon("refused", refused).await.unwrap_err();
    assert!(matches!(refused, enlist::Error::AlreadyRegistered { .. }), "{refused}");
}

#[tokio::test]
async fn a_server_keeps_its_instance_handle_while_serving() {
    let world = Arc::new(World::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::try_from(listener.local_addr().unwrap()).unwrap();
    let instance = Instance::new(id("a"), [endpoint]).unwrap();
    let router = tonic::transport::Server::builder().add_service(support::echo("a"));
    let ((stop, stopped), (handle, registered)) = (oneshot::channel::<()>(), oneshot::channel());
    let server = serve(listener, router)
        .graceful(Graceful::new().propagation(Duration::from_millis(100)))
        .on_registered(|instance| {
            let _ = handle.send(instance);
        })
        .until(async {
            let _ = stopped.await;
        });
    let shared = Arc::clone(&world);
    let run = begun(async move {
        server.register_and_run(&shared.servers, &shared.service, instance, RegisterOptions::new()).await
    });
    let instance = soon("registered", registered).await.unwrap();
    assert!(matches!(instance.state(), RegistrationState::Registered { .. }));
    soon("stored", instance.update(|update| _ = update.weight(7))).await.unwrap();
    let listed = world.servers.resolve(&world.service).await.unwrap();
    assert_eq!(listed.entries().map(|entry| entry.instance().weight()).collect::<Vec<_>>(), [7]);
    stop.send(()).unwrap();
    // The handle keeps neither the instance nor the server alive.
    let report = soon("the end", run).await.unwrap();
    assert!(report.drained && matches!(report.deregistered, Ok(Deregistered::Removed)), "{report:?}");
    assert!(matches!(instance.update(|update| _ = update.weight(1)).await, Err(enlist::Error::Closed)));
}
