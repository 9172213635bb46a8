//! Files that are made for a new image.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vdisk_engine::storage::FileId;
use vdisk_engine::{Error, Result, Storage};

/// The files of all images that are not complete.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

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
        let path = path.into();
        unfinished().push(path.clone());
        self.files.push(path);
    }
    /// Removes the files of all images that are not complete, for who ends the program here and now.
    pub fn remove_unfinished() {
        unfinished().drain(..).for_each(|path| remove(&path));
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
        let files = std::mem::take(&mut self.files);
        unfinished().retain(|path| !files.contains(path));
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.files {
            remove(path);
        }
        unfinished().retain(|path| !self.files.contains(path));
    }
}

/// What cannot be removed stays: nobody could do more.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ends_the_program_removes_what_is_not_complete_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let [complete, begun, failed] = ["complete", "begun", "failed"].map(|name| folder.path().join(name));
        let made = |path: &Path| {
            std::fs::write(path, "x").unwrap();
            let mut made = Made::default();
            made.add(path);
            made
        };
        made(&complete).keep();
        drop(made(&failed));
        std::fs::write(&failed, "by somebody else").unwrap();
        let _begun = made(&begun);
        Made::remove_unfinished();
        assert!(complete.exists() && failed.exists() && !begun.exists());
    }
}
