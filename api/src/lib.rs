//! vdiskd: disk-image management over HTTP and gRPC on one port.
//!
//! Handlers are a few lines over one [`vdisk_service::Service`]. What the service says is turned into statuses by one table
//! ([`errors`]), and the OpenAPI document is generated from the handlers and the service's own types.

pub mod access;
mod body;
pub mod commands;
pub mod errors;
mod grpc;
pub mod http;
pub mod metrics;
pub mod proto;
pub mod server;
pub mod settings;
mod state;
pub mod telemetry;
pub mod tls;
mod web;

pub use http::router;
pub use state::App;
/// The engine's and the service's vocabulary, for those who build on this crate.
pub use vdisk_service;
