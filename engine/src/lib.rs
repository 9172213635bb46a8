//! Disk image formats, backing chains and the operations on them.
//!
//! Four words carry the design. A *storage* ([`storage::Storage`]) is where bytes live: a file, memory, a slice of another storage.
//! A *format driver* ([`formats::FormatDriver`]) opens and creates images of one format. An *image* ([`image::Image`]) is one open
//! layer and answers only for itself. A *backing chain* ([`chain::Chain`]) is an image with everything below it.
//!
//! The engine is synchronous, takes `&self`, and knows neither a clock nor the environment: time, randomness, secrets and the
//! right to open a name come in through [`env::OpenEnv`] and [`env::CreateEnv`].

pub mod chain;
pub mod control;
pub mod crypto;
mod deflate;
pub mod env;
pub mod error;
pub mod formats;
pub mod gate;
pub mod image;
pub mod limits;
pub mod ops;
pub mod options;
pub mod storage;

pub use chain::Chain;
pub use control::{CancelToken, Control, Progress};
pub use env::{CreateEnv, OpenEnv};
pub use error::{Error, ErrorKind, Result};
pub use gate::{Gate, Node};
pub use image::Image;
pub use limits::Limits;
pub use storage::{Storage, StorageRef};
