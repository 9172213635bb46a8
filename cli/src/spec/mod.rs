//! How images are named on the command line and inside other images: file names, URLs, `json:{...}`, option lists.
//!
//! [`keyval`] and [`json`] read the text into a flat list of dotted keys ([`Keys`]); [`Opener::resolve`] turns that into storages
//! and an engine [`Node`](vdisk_engine::Node); [`gate`] does the same for names found inside images.

mod access;
pub mod blkdebug;
mod format_node;
pub mod gate;
mod http;
pub mod image_storage;
pub mod json;
pub mod keys;
pub mod keyval;
mod made;
pub mod name;
pub mod nbd;
pub mod new_file;
mod null;
pub mod open;
pub mod protocol;
mod resolve;
pub mod shown;
pub mod url;
mod vvfat;

pub use access::Access;
pub use keys::Keys;
pub use made::Made;
pub use open::{OpenImage, Opener};
pub use resolve::{Resolved, Spec};
