//! Exit statuses of the command itself. Those of locks are options, `--not-acquired-status` and `--lost-status`.

/// Usage error, as clap reports it.
pub(crate) const USAGE: u8 = 2;

/// The program to run cannot be executed, as in shells.
pub(crate) const NOT_EXECUTABLE: u8 = 126;

/// The program to run does not exist, as in shells.
pub(crate) const NOT_FOUND: u8 = 127;
