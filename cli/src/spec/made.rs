//! Files that are made for a new image.

use std::path::PathBuf;

/// Files that were not there before: they go again, however its making ends, unless the image was completed.
#[derive(Debug, Default)]
#[must_use = "the files go when this is dropped"]
pub struct Made(Vec<PathBuf>);

impl Made {
    /// Notes a file that was made.
    pub fn add(&mut self, path: impl Into<PathBuf>) {
        self.0.push(path.into());
    }
    /// The image is complete: its files stay.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}
