//! Which of an image's internal snapshots a request means.

use vdisk_engine::image::SnapshotInfo;

/// The snapshot of that name or, where none has it, of that id. A name may look like another one's id.
pub fn find_snapshot<'a>(list: &'a [SnapshotInfo], word: &str) -> Option<&'a SnapshotInfo> {
    let named = list.iter().find(|snapshot| snapshot.name == word);
    named.or_else(|| list.iter().find(|snapshot| snapshot.id == word))
}
