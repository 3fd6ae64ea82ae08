//! Clients and instances, as an agent shows them over HTTP.

use enlist_testkit::eventually;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{http, world::World};

#[derive(Debug, Deserialize)]
struct Shown {
    clients: Vec<ShownClient>,
}

/// A client of xDS.
#[derive(Debug, Deserialize)]
pub(crate) struct ShownClient {
    pub(crate) node: String,
    pub(crate) user_agent: String,
    pub(crate) zone: String,
    pub(crate) rejected: u64,
    pub(crate) last_rejection: Option<ShownRejection>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ShownRejection {
    pub(crate) r#type: String,
    pub(crate) message: String,
}

#[derive(Debug, Deserialize)]
struct ShownService {
    instances: Vec<ShownInstance>,
}

#[derive(Debug, Deserialize)]
struct ShownInstance {
    presence: String,
}

/// Waits until this number of instances of `greeter` are registered. Those that are held are not.
pub(crate) async fn instances<W: World>(world: &W, number: usize) {
    eventually("these instances are registered", || async {
        let live = live(world).await?;
        if live == number { Ok(()) } else { Err(format!("{live} of {number}")) }
    })
    .await;
}

/// Returns the number of instances of `greeter` that are registered.
pub(crate) async fn live<W: World>(world: &W) -> Result<usize, String> {
    let service: ShownService = read(world, "/v1/services/default/greeter").await?;
    Ok(service.instances.iter().filter(|instance| instance.presence == "live").count())
}

/// Reads an object from the agent.
async fn read<T: DeserializeOwned>(world: &impl World, path: &str) -> Result<T, String> {
    let text = http::get(world.http(), path, world.settings().token).await.map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}

impl ShownClient {
    /// Returns the only client, once it `fits`.
    pub(crate) async fn only<W: World>(world: &W, fits: impl Fn(&Self) -> bool) -> Self {
        eventually("one client is shown", || async {
            let mut shown: Shown = read(world, "/v1/clients").await?;
            match shown.clients.pop() {
                Some(client) if shown.clients.is_empty() && fits(&client) => Ok(client),
                last => Err(format!("{last:?} and {:?}", shown.clients)),
            }
        })
        .await
    }
}
