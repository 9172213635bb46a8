//! Whole scenarios against the program itself, started as its users start it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a broken precondition fails the test"
)]

mod client;
mod grpc;
mod http;
mod killed;
mod large_map;
mod programs;
mod python;
mod schemathesis;
mod secrets;
mod soak;
mod story;
mod vdiskd;
