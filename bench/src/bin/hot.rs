//! Repeats one operation a given number of times, for callgrind; see `scenarios/instructions.rs`.
//!
//! ```text
//! hot PATH COUNT
//! ```

use std::hint::black_box;

use enlist::{PickPolicy, ServiceRef};
use enlist_bench::{
    measure::Result,
    scenarios::{
        grpc::{self, Side},
        pick::{self, SharedList},
    },
    world::{instance, pair},
};
use enlist_etcd::{
    Native,
    layout::{Layout, Writing},
};

/// Size of the name in a large call, in bytes.
const LARGE: usize = 64 << 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, often] = &arguments[..] else {
        return Err("hot PATH COUNT".into());
    };
    let often: u64 = often.parse()?;
    match path.as_str() {
        "pick-shared" => {
            let list = SharedList::of(&pick::view(pick::INSTANCES).await?)?;
            (0..often).for_each(|_| drop(black_box(list.pick())));
        }
        "pick-round-robin" => picks(PickPolicy::RoundRobin, often).await?,
        "pick-weighted" => picks(PickPolicy::Weighted, often).await?,
        "pick-hash" => picks(PickPolicy::ConsistentHash, often).await?,
        "encode" => {
            let (layout, service, instance) = (Native::default(), ServiceRef::parse("hot")?, instance(7)?);
            for _ in 0..often {
                black_box(layout.encode(&service, &instance, &Writing::default())?);
            }
        }
        "decode" => {
            let (layout, service) = (Native::default(), ServiceRef::parse("hot")?);
            let (key, value) = pair(&service, 7, 100)?;
            for _ in 0..often {
                black_box(layout.decode(&service, &key, &value).map_err(|skip| format!("{skip:?}"))?);
            }
        }
        "decode-like" => {
            let (layout, service, like) = (Native::default(), ServiceRef::parse("hot")?, instance(8)?);
            let (key, value) = pair(&service, 7, 100)?;
            for _ in 0..often {
                black_box(layout.decode_like(&like, &service, &key, &value).map_err(|skip| format!("{skip:?}"))?);
            }
        }
        "call-plain" => calls(Side::Plain, often, 0).await?,
        "call" => calls(Side::Ours, often, 0).await?,
        "call-large-plain" => calls(Side::Plain, often, LARGE).await?,
        "call-large" => calls(Side::Ours, often, LARGE).await?,
        "json" => {
            let (_, value) = pair(&ServiceRef::parse("hot")?, 7, 100)?;
            for _ in 0..often {
                black_box(serde_json::from_slice::<serde_json::Value>(&value)?);
            }
        }
        _ => return Err(format!("{path} is not known").into()),
    }
    Ok(())
}

async fn picks(policy: PickPolicy, often: u64) -> Result {
    let view = pick::view(pick::INSTANCES).await?;
    let mut picker = view.picker(policy);
    for key in 0..often {
        pick::pick(&mut picker, policy, key);
    }
    Ok(())
}

async fn calls(side: Side, often: u64, bytes: usize) -> Result {
    // Calls have runtimes of their own.
    tokio::task::spawn_blocking(move || grpc::calls(side, often, bytes)).await?
}
