//! The transports over a real service on a loopback port: one module a subject.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a broken precondition fails the test"
)]

mod access;
mod alike;
mod architecture;
mod document;
mod errors;
mod full_disk;
mod grpc;
mod health;
mod images;
mod info;
mod inspection;
mod jobs;
mod load;
mod messages;
mod names;
mod owasp;
mod pages;
mod plans;
mod server;
mod strict;
mod tls;
mod transfer;
mod upload_abuse;
mod webhooks;
