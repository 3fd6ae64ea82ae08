//! Side-by-side measurements: `enlist` and what people use today in turns, in one process, on the same etcd. What counts are
//! ratios; absolute times are noise on a shared machine. `cargo xtask bench` runs them, `bench/README.md` explains them.

pub mod measure;
pub mod report;
pub mod scenarios;
pub mod world;
