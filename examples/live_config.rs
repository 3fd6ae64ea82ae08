//! A program that changes its log level, a rate limit and a feature flag while it runs.
//!
//! ```text
//! cargo run --example live_config
//! cargo run --example live_config --features etcd -- --etcd http://127.0.0.1:2379 --stay
//! ```
//!
//! With `--stay` it changes nothing itself: it runs until Ctrl-C and prints its state when it changes. Change the value
//! with `enlist config set app/settings.toml`, break it, or kill etcd meanwhile.

use std::{error::Error, sync::Arc, time::Duration};

use enlist::{ConfigPath, ConfigScope, Expect, Namespace};
use enlist_config::{ConfigView, Flags, Format, LogFilter, RateLimit, RateLimiter, WithoutStore, log_filter};
use enlist_examples::{Store, flag};
use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

const DEFAULTS: &str = r#"
log = "warn"
rate = { per_second = 10, burst = 5 }
flags = { new-checkout = { percentage = 0 } }
"#;

const CHANGED: &str = r#"
log = "warn,live_config=debug"
rate = { per_second = 100 }
flags = { new-checkout = { percentage = 30 } }
"#;

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(serde::Deserialize)]
struct Settings {
    log: LogFilter,
    rate: RateLimit,
    flags: Flags,
}

#[tokio::main]
async fn main() -> Result {
    let store = Store::from_args()?;
    let config = store.config().await?;
    let path = ConfigPath::parse("app/settings.toml")?;
    let (filter, log) = log_filter(&"warn".parse()?);
    tracing_subscriber::registry()
        .with(filter)
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr))
        .init();

    // `APP_RATE__PER_SECOND=1` overrides the store.
    let view = ConfigView::<Settings>::builder(Arc::clone(&config), ConfigScope::Path(path.clone()))
        .default_text(Format::Toml, DEFAULTS)
        .environment("APP")
        .validate(|settings| if settings.rate.burst() <= 1000 { Ok(()) } else { Err("the burst is above 1000") })
        .without_store(WithoutStore::UseDefaults)
        .open()
        .await?;
    let limiter = Arc::new(RateLimiter::new(view.current().rate));
    let limit = Arc::clone(&limiter);
    view.on_change(move |settings| {
        log.set(&settings.log);
        limit.set(settings.rate);
    })?;

    if flag("--stay") {
        println!("running until Ctrl-C");
        tokio::select! {
            () = print_changes(&view, &limiter) => {}
            interrupted = tokio::signal::ctrl_c() => interrupted?,
        }
        return Ok(());
    }
    for (step, value) in [("changed", CHANGED), ("broken", "rate = "), ("restored", DEFAULTS)] {
        config.put(&Namespace::default(), &path, value.into(), Expect::Any).await?;
        // A program needs no such wait: it uses the values that it has.
        tokio::time::sleep(Duration::from_millis(300)).await;
        println!("{step}: {}", describe(&view, &limiter));
    }
    Ok(())
}

/// The state of the three parts, found out by their use, and that of the view.
fn describe(view: &ConfigView<Settings>, limiter: &RateLimiter) -> String {
    let debug = if tracing::enabled!(tracing::Level::DEBUG) { "on" } else { "off" };
    let per_second = limiter.limit().per_second();
    let settings = view.current();
    let users = (0..1000).filter(|user| settings.flags.is_on("new-checkout", &format!("user-{user}"))).count();
    let state = view.state();
    let live = if state.freshness.is_some_and(|freshness| freshness.is_live()) { "live" } else { "store away" };
    let rejected = state.rejected.map_or(String::new(), |rejection| format!(", rejected {rejection}"));
    format!("debug {debug}, {per_second} calls per second, new checkout for {users} of 1000 users; {live}{rejected}")
}

async fn print_changes(view: &ConfigView<Settings>, limiter: &RateLimiter) {
    let mut printed = String::new();
    loop {
        let line = describe(view, limiter);
        if line != printed {
            println!("{line}");
            printed = line;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
