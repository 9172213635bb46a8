//! Files that are made for a new image.

use std::path::PathBuf;

use vdisk_engine::storage::FileId;
use vdisk_engine::{Error, Result, Storage};

/// Files that were not there before: they go again, however its making ends, unless the image was completed.
#[derive(Debug, Default)]
#[must_use = "the files go when this is dropped"]
pub struct Made {
    files: Vec<PathBuf>,
    /// Files that are read for the image, under whatever name.
    inputs: Vec<FileId>,
}

impl Made {
    /// None yet, for an image that is made from what lies in these files.
    pub fn from_inputs(inputs: Vec<FileId>) -> Self {
        Self {
            files: Vec::new(),
            inputs,
        }
    }
    /// Notes a file that was made.
    pub fn add(&mut self, path: impl Into<PathBuf>) {
        self.files.push(path.into());
    }
    /// # Errors
    /// `InvalidArgument` where a file that is to be emptied is one that is read.
    pub fn refuse_input(&self, file: &dyn Storage) -> Result<()> {
        match file.identity().filter(|id| self.inputs.contains(id)) {
            None => Ok(()),
            Some(_) => Err(Error::invalid(format!(
                "'{}' is a file of an image that the new one is made from or stacked on",
                file.name()
            ))),
        }
    }
    /// The image is complete: its files stay.
    pub fn keep(mut self) {
        self.files.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.files {
            let _ = std::fs::remove_file(path);
        }
    }
}
