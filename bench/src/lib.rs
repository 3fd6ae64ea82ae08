//! Side-by-side measurements of `enlist` and its references, in turns, in one process, on the same etcd. Ratios count,
//! because absolute times vary on a shared machine. `cargo xtask bench` runs the measurements; `bench/README.md`
//! explains them.

pub mod driven;
pub mod measure;
pub mod peers;
pub mod plots;
pub mod report;
pub mod scenarios;
pub mod world;
