//! Inventory, pools, leases, job queue, workers and secrets of vdiskd.
//!
//! [`Service`] is the one object both transports call. It knows images by id, never by path; it knows no HTTP and no
//! gRPC: its errors carry a [`ErrorCode`], its long work is a [`model::Job`], its bodies are streams of bytes.
//!
//! All SQL lives under `store/`, every kind of job is one file under `jobs/`, and everything that touches an image
//! byte is the engine's.

pub mod clock;
pub mod config;
mod disk;
pub mod error;
pub mod fault;
mod jobs;
pub mod model;
mod pool;
mod queue;
#[doc(hidden)]
pub mod queue_sample;
pub mod request;
pub mod sandbox;
mod secrets;
mod service;
mod store;
mod webhooks;

pub use clock::{Clock, SystemClock, Timestamp};
pub use config::ServiceConfig;
pub use error::{ErrorCode, Result, ServiceError};
pub use service::{Audited, Content, Download, ExtentStream, Service, TokenText};
/// The bytes type of upload and download bodies.
pub use tokio_util::bytes::Bytes;
pub use vdisk_engine::crypto::refuse_core_dumps;
