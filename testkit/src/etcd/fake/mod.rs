//! A scripted etcd in this process: it answers correctly by default, and misbehaves on demand in ways that a real
//! server cannot be made to.
//!
//! It speaks etcd's protocol through the server traits of `etcd-client`, over an in-memory pipe, so that a paused clock
//! works. Its store keeps revisions, leases and history. Leases never expire by default. Requests that it does not
//! implement are refused, as are the parts of a request that it does not imitate. Tokens are the exception: everyone is
//! given one, and none is checked. Begin with `fake_etcd.rs`, which is its handle in tests.

mod etcd_defects;
mod fake_etcd;
mod lagging_members;
mod link;
mod misbehavior;
mod records;
mod requests;
mod services;
mod state;
mod store;
mod watches;

pub use self::{
    etcd_defects::{ConcealedRevocation, EtcdDefect},
    fake_etcd::{FakeEtcd, FakeSnapshot},
    link::Link,
    misbehavior::{LateWrite, Minority, Misbehaved, Misbehavior},
    records::{KeyChange, Requests},
};
