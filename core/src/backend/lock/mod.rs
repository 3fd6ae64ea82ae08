//! Locks, elections and semaphores, as the parts that both backends share: the task of a contender, the decisions about
//! positions in a queue, and the driver's half of a guard. Begin with `contender.rs`.

pub mod contender;
pub(crate) mod guard_driver;
pub(crate) mod leadership;
pub(crate) mod lock_validity;
pub(crate) mod permit_position;
pub(crate) mod proclamation;
pub(crate) mod queue_position;
pub(crate) mod queues;
