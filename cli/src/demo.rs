//! `enlist demo`: two services, five instances and a rolling restart on the memory backend.

use std::{sync::Arc, time::Duration};

use enlist::{
    Directory, Endpoint, Health, Instance, InstanceId, Moment, PickPolicy, RegisterOptions, Registration, Registry,
    Resolver, ServiceRef, ServiceView,
};
use enlist_memory::MemoryStore;
use serde_json::json;

use crate::{
    args::Demo,
    instances,
    output::{Failure, Output, Paint, Text, To},
    signals::Signals,
    table::Live,
};

/// Length of each scene.
const SCENE: Duration = Duration::from_millis(1200);

/// Interval of redrawing the tables.
const FRAME: Duration = Duration::from_millis(100);

pub(crate) async fn run(demo: &Demo, output: Output) -> Result<u8, Failure> {
    let mut signals = Signals::ending()?;
    let begun = Moment::now();
    let mut stage = Stage::new(output).await?;
    let over = async {
        match demo.length {
            Some(length) => tokio::time::sleep(length).await,
            None => std::future::pending().await,
        }
    };
    let code = tokio::select! {
        played = stage.play() => match played? {},
        signal = signals.next() => signal.as_exit(),
        () = over => 0,
    };
    stage.caption(&format!(
        "end of the demo after {:.0} s; `enlist --help` lists the commands for etcd",
        begun.elapsed().as_secs_f64()
    ))?;
    Ok(code)
}

fn service(name: &str) -> Result<ServiceRef, enlist::Error> {
    ServiceRef::parse(name)
}

fn instance(name: &str, number: u16, version: &str) -> Result<Instance, enlist::Error> {
    let endpoint = Endpoint::new(format!("10.0.0.{number}"), 8080)?.with_protocol("grpc")?;
    let zone = if number.is_multiple_of(2) { "eu-1b" } else { "eu-1a" };
    Ok(Instance::new(InstanceId::parse(format!("{name}-{number}"))?, [endpoint])?.with_version(version).with_zone(zone))
}

struct Stage {
    output: Output,
    store: MemoryStore,
    views: Vec<ServiceView>,
    shops: Vec<Registration>,
    _payments: Vec<Registration>,
    live: Option<Live>,
    caption: String,
    calls: u64,
}

impl Stage {
    async fn new(output: Output) -> Result<Self, Failure> {
        let store = MemoryStore::new();
        let client = store.client();
        let directory = Directory::new(Arc::new(store.client()) as Arc<dyn Resolver>);
        let (mut shops, mut payments) = (Vec::new(), Vec::new());
        for number in 1..=3 {
            shops.push(
                client.register(&service("shop")?, instance("shop", number, "1.0")?, RegisterOptions::new()).await?,
            );
        }
        for number in 1..=2 {
            let instance = instance("payment", number, "2.3")?;
            payments.push(client.register(&service("payment")?, instance, RegisterOptions::new()).await?);
        }
        let views = vec![directory.view(&service("shop")?), directory.view(&service("payment")?)];
        for view in &views {
            view.ready().await?;
        }
        let live = output.is_live().then(Live::default);
        let caption = String::new();
        Ok(Self { output, store, views, shops, _payments: payments, live, caption, calls: 0 })
    }

    /// Prints the caption of a scene.
    fn caption(&mut self, text: &str) -> Result<(), Failure> {
        text.clone_into(&mut self.caption);
        if self.live.is_some() {
            return self.draw();
        }
        let shown: Vec<_> = self
            .views
            .iter()
            .map(|view| {
                json!({
                    "service": view.service().to_string(),
                    "instances": view.snapshot().map_or(0, |snapshot| snapshot.len()),
                })
            })
            .collect();
        let object = json!({ "scene": text, "calls": self.calls, "services": shown });
        self.output.line(To::Stdout, text, &object)?;
        if !self.output.json {
            for line in self.tables() {
                self.output.line(To::Stdout, line, &())?;
            }
        }
        Ok(())
    }

    fn tables(&self) -> Vec<Text> {
        let mut lines = Vec::new();
        for view in &self.views {
            if let Some(snapshot) = view.snapshot() {
                lines.extend(instances::titled_table(view.service(), &snapshot));
            }
        }
        lines
    }

    fn draw(&mut self) -> Result<(), Failure> {
        let mut lines = vec![
            Text::painted(Paint::Good, &self.caption, ""),
            format!("{} calls were sent to a serving instance", self.calls).into(),
            "".into(),
        ];
        lines.extend(self.tables());
        if let Some(live) = &mut self.live {
            live.draw(&lines, self.output)?;
        }
        Ok(())
    }

    /// Shows the tables for the length of a scene, and picks an instance for each call meanwhile.
    async fn scene(&mut self, text: &str) -> Result<(), Failure> {
        let mut picker = self.views[0].picker(PickPolicy::Weighted);
        let begun = Moment::now();
        // The views are updated within one frame.
        tokio::time::sleep(FRAME).await;
        self.caption(text)?;
        while begun.elapsed() < SCENE {
            for _ in 0..10 {
                self.calls += u64::from(picker.pick().is_ok());
            }
            if self.live.is_some() {
                self.draw()?;
            }
            tokio::time::sleep(FRAME).await;
        }
        Ok(())
    }

    /// Plays all scenes, repeatedly.
    async fn play(&mut self) -> Result<std::convert::Infallible, Failure> {
        let client = self.store.client();
        let mut release = 0;
        loop {
            self.scene("three instances of shop and two of payment, each under a lease").await?;
            release += 1;
            let version = format!("1.{release}");
            for number in 1..=3_u16 {
                let leaving = self.shops.remove(0);
                // Clients see the mark and stop picking the instance before it is removed.
                leaving.update(|update| _ = update.health(Health::Draining)).await?;
                self.scene(&format!("rolling restart: shop-{number} drains")).await?;
                leaving.deregister().await?;
                let next = instance("shop", number, &version)?;
                self.shops.push(client.register(&service("shop")?, next, RegisterOptions::new()).await?);
                self.scene(&format!("rolling restart: shop-{number} has version {version}")).await?;
            }
            for lease in self.store.leases() {
                self.store.revoke(lease);
            }
            self.scene("all leases were revoked: all instances are registered again, and no view was empty").await?;
        }
    }
}
