//! From records of the inventory to open chains of the engine. The only place of the service where images are opened.

mod changed;
mod check;
mod content;
mod create;
mod error;
mod facts;
mod first_write;
mod gate;
mod inspect;
mod open;
mod secrets;
mod snapshots;

pub use changed::{base_changed, facts_of, look_again, look_at_base, require_as_bound, was_changed_by_others};
pub use check::check_structures;
pub use create::{NewDisk, content, create_disk, fill_random, publish, stage, try_random};
pub use facts::{file_facts, file_stamp, fingerprint, is_as_left, open_file, version};
pub use first_write::{Changes, FirstWrite};
pub use gate::explicit_node;
pub use inspect::{Look, Looked, look};
pub use open::{Layer, Opening, keyring, open_chain, reference_to};
pub use secrets::OpenSecrets;
pub use snapshots::find_snapshot;
