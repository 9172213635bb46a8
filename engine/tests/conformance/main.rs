//! Every driver, held to what its `Capabilities` say: the cases come from there, so a new driver is tested by being listed.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod bases;
mod chains;
mod hostile;
mod layers;
mod lifecycle;
mod limits;
mod resume;
mod support;
mod writes;
