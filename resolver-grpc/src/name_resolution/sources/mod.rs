//! Sources of the instances of a target: a resolver for each scheme, DNS, or the target itself.

mod dns;
mod fixed;
mod lookup;
mod schemes;
mod system;

pub(crate) use self::system::Names;
pub use self::{dns::Dns, fixed::Fixed, lookup::Lookup, schemes::Schemes};
