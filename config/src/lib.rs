//! Typed, validated views of configuration that follow the store.
//!
//! [`enlist::Config`] has bytes by path. This crate makes a value of the user's type of them, and keeps it current.
//!
//! | you want to | look at |
//! |---|---|
//! | read configuration that changes while the program runs | [`ConfigView`] |
//! | set defaults, environment variables, validation, a copy on disk | [`ConfigViewBuilder`] |
//! | know the reason for which a value is not used | [`ConfigView::state`], [`Rejection`] |
//! | read several values as one | [`Tree`] |
//! | keep secrets out of logs | [`Secret`] |
//! | change a rate limit while it is used | [`RateLimiter`] |
//! | switch a feature on for a part of the users | [`Flags`], [`Percentage`] |
//! | change the log level of a running program | `log_filter`, with the feature `tracing` |
//!
//! | feature | effect |
//! |---|---|
//! | `json` (default) | reads values in JSON |
//! | `toml` (default) | reads values in TOML |
//! | `tracing` | `LogFilter`, `LogHandle` and `log_filter` for `tracing-subscriber` |
//!
//! Begin with `view.rs`, then read `plan.rs` for the decisions and `task.rs` for their execution.

mod builder;
mod copy_on_disk;
mod follower;
mod format;
mod layers;
mod live;
mod merged;
mod parser;
mod plan;
mod rejection;
mod secret;
mod start;
mod state;
mod task;
mod view;

#[cfg(feature = "tracing")]
#[doc(inline)]
pub use self::live::log_filter::{InvalidLogFilter, LogFilter, LogHandle, log_filter};
#[doc(inline)]
pub use self::{
    builder::{ConfigViewBuilder, DEFAULT_OPEN_TIMEOUT},
    format::Format,
    layers::Tree,
    live::{
        flags::{Flag, Flags, InvalidPercentage, Percentage},
        rate_limiter::{InvalidRate, Limited, RateLimit, RateLimiter},
    },
    rejection::{Origin, Reason, Rejection},
    secret::Secret,
    start::WithoutStore,
    state::{ConfigState, Source},
    view::ConfigView,
};

/// Runs the program in the README as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
