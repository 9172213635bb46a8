//! qcow2 against its specification, its peers, crashes and hostile files.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod bitmaps;
mod check;
mod concurrent;
mod corpus;
mod data_places;
mod differential;
mod encrypted;
mod encrypted_hostile;
mod encrypted_peers;
mod growth;
mod hostile;
mod interop;
mod model;
mod order;
mod packed;
mod second_users;
mod shape;
mod snapshots;
mod support;
mod taken_back;
