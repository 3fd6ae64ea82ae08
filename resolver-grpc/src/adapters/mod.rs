//! Adapters for code that needs tonic's own channel type, each with the limits of that type.

mod balance_channel;
mod pick_first;

pub use self::{
    balance_channel::{Balanced, balance_channel},
    pick_first::pick_first,
};
