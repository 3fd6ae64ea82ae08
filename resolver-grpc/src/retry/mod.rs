//! Repetition of calls: the meaning of an error or a status, the decision about another attempt, and the request body
//! that can be sent again. The decisions are pure. Begin with `policy.rs`.

pub(crate) mod deadline;
pub(crate) mod failure;
pub(crate) mod policy;
pub(crate) mod replay;
pub(crate) mod status;
