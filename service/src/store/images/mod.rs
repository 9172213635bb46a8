//! The inventory: records of images and the edges between overlays and bases.

mod change;
mod read;
mod tell;
mod upload;

pub use read::PoolUse;

use serde_json::{Value, json};

use super::row::Columns;
use crate::error::Result;
use crate::model::{Image, ImageId, ImageState, Labels};
use crate::request::SecretRefs;

/// A record with what clients do not see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// What clients see.
    pub image: Image,
    /// Name of the file inside the pool's folder.
    pub file: String,
    /// The base's generation that this overlay is bound to.
    pub backing_generation: Option<u64>,
    /// The base as the overlay's header names it.
    pub backing_name: Option<String>,
    /// Size and time of the file after our last change; `None` while it is being changed.
    pub file_stamp: Option<String>,
    /// Whose the row is while it is reserved.
    pub reserved_by: Option<String>,
}

/// An edge to a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The base.
    pub id: ImageId,
    /// Its generation at the time.
    pub generation: u64,
    /// Its name in the overlay's header.
    pub name: String,
}

/// What a new row starts with.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Id.
    pub id: ImageId,
    /// Name, checked by the caller.
    pub name: String,
    /// Pool, known to exist.
    pub pool: String,
    /// File inside the pool.
    pub file: String,
    /// Format; empty while unknown.
    pub format: String,
    /// Labels.
    pub labels: Labels,
    /// Secrets that open it, by role.
    pub secrets: SecretRefs,
    /// Edge that has to be kept from now on.
    pub backing: Option<Backing>,
    /// Why the row exists before the image does.
    pub origin: Origin,
}

/// Why a row exists before its image does.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A job or request (by id) is making the file; the row is hidden.
    ReservedBy(uuid::Uuid),
    /// A client sends the file; the row is shown.
    Upload,
}

/// What is known of an image once its file is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileFacts {
    /// Format driver.
    pub format: String,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Bytes on disk.
    pub allocated_size: u64,
    /// Length of the file.
    pub file_size: u64,
    /// Whether its content is encrypted.
    pub encrypted: bool,
    /// Size and time of the file.
    pub stamp: String,
}

impl FileFacts {
    /// Tells an image the sizes of its file.
    pub fn sizes_into(&self, image: &mut Image) {
        image.virtual_size = self.virtual_size;
        image.allocated_size = self.allocated_size;
        image.file_size = self.file_size;
    }
}

/// What parts of an upload say of the whole file. All that do say the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Its SHA-256, hexadecimal.
    pub sha256: Option<String>,
    /// Its length.
    pub total: Option<u64>,
}

/// A `SELECT` of whole records with whatever follows.
macro_rules! select_images {
    ($tail:literal) => {
        concat!(
            "SELECT i.id, i.name, i.pool, i.file, i.format, ",
            "CASE WHEN i.state = 'ready' AND EXISTS (SELECT 1 FROM image_locks l ",
            "WHERE l.image_id = i.id AND l.mode = 'exclusive') THEN 'busy' ELSE i.state END AS state, ",
            "i.virtual_size, i.allocated_size, i.file_size, i.backing_id, i.backing_generation, i.backing_name, ",
            "i.generation, i.file_stamp, i.labels, i.protected, i.encrypted, i.secrets, i.uploaded_bytes, i.problem, ",
            "i.reserved_by, i.created_at, i.updated_at FROM images i ",
            $tail
        )
    };
}
use select_images;

fn record(row: &sqlx::any::AnyRow) -> Result<ImageRecord> {
    let state = row.text("state")?;
    // Reserved rows reach only their makers; for everybody else they do not exist.
    let state = if state == "reserved" {
        ImageState::Busy
    } else {
        state.parse()?
    };
    let image = Image {
        id: row.id("id")?,
        name: row.text("name")?,
        pool: row.text("pool")?,
        format: row.text("format")?,
        state,
        virtual_size: row.size("virtual_size")?,
        allocated_size: row.size("allocated_size")?,
        file_size: row.size("file_size")?,
        backing_id: row.id_or_null("backing_id")?,
        generation: row.size("generation")?,
        labels: row.json("labels")?,
        protected: row.flag("protected")?,
        encrypted: row.flag("encrypted")?,
        secrets: row.json("secrets")?,
        uploaded_bytes: row.size_or_null("uploaded_bytes")?,
        problem: row.text_or_null("problem")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
    };
    Ok(ImageRecord {
        image,
        file: row.text("file")?,
        backing_generation: row.size_or_null("backing_generation")?,
        backing_name: row.text_or_null("backing_name")?,
        file_stamp: row.text_or_null("file_stamp")?,
        reserved_by: row.text_or_null("reserved_by")?,
    })
}

fn event_data(image: &Image) -> Value {
    json!({
        "name": image.name, "pool": image.pool, "state": image.state, "generation": image.generation,
        "virtual_size": image.virtual_size, "allocated_size": image.allocated_size, "backing_id": image.backing_id,
    })
}
