//! For code that needs tonic's own channel type: adapters, each with the limits of what it adapts.

mod balance_channel;
mod pick_first;

pub use self::{
    balance_channel::{Balanced, balance_channel},
    pick_first::pick_first,
};
