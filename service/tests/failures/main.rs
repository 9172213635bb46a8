//! What may happen in the middle of anything the service does: it is killed, or a step fails. Afterwards every accepted job ends
//! once, the content is right, no file is left over and no record without its file.
//!
//! Each case runs in a process of its own: this test program once more, told by the environment what to do.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

#[path = "../common/mod.rs"]
mod common;

mod act;
mod begun;
mod child;
mod images;
mod jobs;
mod parent;
mod points;
mod prepare;
mod scene;
mod starts;
mod verify;
