//! What handlers take out of a request.

mod accept;
pub mod body;
mod conditions;
mod digest;
pub mod idempotency;
mod job_body;
mod path;
mod query;
mod range;
mod wait;
pub(crate) mod words;

pub use accept::prefers;
pub use body::{JsonBody, OptionalBody};
pub use conditions::{Conditions, Verdict};
pub use digest::announced_checksum;
pub use idempotency::IdempotencyKey;
pub use job_body::{JobBody, OptionalJobBody};
pub use path::{ImagePath, JobPath, PoolPath, SecretPath, SnapshotPath, TokenPath, WebhookPath};
pub use query::Query;
pub use range::{ContentRange, RangeHeaders};
pub use wait::Wait;
