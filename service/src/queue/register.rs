//! Files that a scan found become images, as far as they can: others have worked on the pool since it looked.

use serde_json::{Value, json};

use crate::disk::is_as_left;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::jobs::{accept_base, require_ready};
use crate::model::{ImageId, JobId};
use crate::pool::{FileName, PoolFolder};
use crate::store::Tx;
use crate::store::images::{Backing, FileFacts, NewImage, Origin};

/// A base as the header of a found overlay names it.
#[derive(Clone, Debug)]
pub struct NamedBase {
    /// Its file in the pool.
    pub file: String,
    /// Its name in the header.
    pub name: String,
    /// The format that the header claims for it.
    pub format: Option<String>,
    /// What the scan found it to be, where that is not on record.
    pub changed: Option<ChangedBase>,
}

/// A base whose file is not what is on record.
#[derive(Clone, Debug)]
pub struct ChangedBase {
    /// Generation and stamp on record, of then.
    pub known: (u64, Option<String>),
    /// What the file is like.
    pub facts: FileFacts,
}

/// Records a found file as an image. What is an image by now, or gone, is left out of the job's result, and so is, with the reason, what
/// somebody has changed or what has no base to stand on any more.
pub async fn register(
    tx: &mut Tx,
    job: JobId,
    pool: &PoolFolder,
    (new, base): (&NewImage, Option<&NamedBase>),
    facts: &FileFacts,
    result: &mut Value,
) -> Result<()> {
    if is_on_record(tx, new).await? {
        leave_out(result, new.id);
        return Ok(());
    }
    // An image that came and went since the scan looked took its file with it: a deletion puts the file aside before the record goes.
    let Some(stat) = pool.stat(&new.file)? else {
        leave_out(result, new.id);
        return Ok(());
    };
    if !is_as_left(&stat, &facts.stamp) {
        let public = "the file was changed while the pool was scanned; scan again";
        leave_out(result, new.id);
        skip(result, &new.file, &ServiceError::new(ErrorCode::ImageBusy, public));
        return Ok(());
    }
    let mut new = new.clone();
    new.origin = Origin::ReservedBy(job);
    if let Some(named) = base {
        match find_base(tx, &new.pool, named).await? {
            Ok(backing) => new.backing = Some(backing),
            Err(refused) => {
                leave_out(result, new.id);
                skip(result, &new.file, &refused);
                return Ok(());
            }
        }
    }
    if tx.is_name_taken(&new.pool, &new.name).await? {
        // The end of the id is random: it makes the name unique.
        let id = new.id.simple().to_string();
        let suffix = id.get(id.len() - 8..).unwrap_or(&id);
        let kept: String = new.name.chars().take(100).collect();
        new.name = format!("{kept}-{suffix}");
    }
    tx.insert_image(&new).await?;
    tx.publish_image(new.id, job, &new.file, facts).await
}

/// Whether the file belongs to an image by now. One that just got its name from us has a record already, under another name.
async fn is_on_record(tx: &mut Tx, new: &NewImage) -> Result<bool> {
    if let FileName::Published(image) = FileName::parse(&new.file)
        && tx.any_image(image).await?.is_some()
    {
        return Ok(true);
    }
    Ok(tx.image_of_file(&new.pool, &new.file).await?.is_some())
}

/// The base as it is now, or why it cannot be one.
async fn find_base(tx: &mut Tx, pool: &str, named: &NamedBase) -> Result<Result<Backing>> {
    let file = named.file.escape_debug();
    let Some(base) = tx.image_of_file(pool, &named.file).await? else {
        let public = format!("its base '{file}' is no image any more");
        return Ok(Err(ServiceError::new(ErrorCode::Denied, public)));
    };
    if let Err(error) = require_ready(&base) {
        return Ok(Err(error));
    }
    if named
        .format
        .as_ref()
        .is_some_and(|claimed| *claimed != base.image.format)
    {
        let public = "the format it claims for its base is not the base's";
        return Ok(Err(ServiceError::new(ErrorCode::FormatMismatch, public)));
    }
    // Who changes or deletes it counts on what stands on it.
    if tx.is_locked_exclusively(base.image.id).await? {
        let public =
            format!("its base '{file}' is being changed by another job or request; scan again when that has ended");
        return Ok(Err(ServiceError::new(ErrorCode::ImageBusy, public)));
    }
    let mut generation = base.image.generation;
    if let Some(changed) = &named.changed
        && changed.known == (generation, base.file_stamp.clone())
    {
        match accept_base(tx, &base, &changed.facts).await {
            Ok(()) => generation = tx.image(base.image.id).await?.image.generation,
            Err(error) if error.code == ErrorCode::BaseChanged => return Ok(Err(error)),
            Err(error) => return Err(error),
        }
    }
    Ok(Ok(Backing {
        id: base.image.id,
        generation,
        name: named.name.clone(),
    }))
}

/// A file that was not registered, as the result of a scan lists it.
pub fn skipped(file: &str, error: &ServiceError) -> Value {
    json!({"file": file, "code": error.code.as_str(), "detail": error.public})
}

fn skip(result: &mut Value, file: &str, error: &ServiceError) {
    if let Some(Value::Array(list)) = result.get_mut("skipped") {
        list.push(skipped(file, error));
    }
}

fn leave_out(result: &mut Value, image: ImageId) {
    let image = json!(image);
    if let Some(Value::Array(list)) = result.get_mut("registered") {
        list.retain(|entry| entry.get("image_id") != Some(&image));
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use uuid::Uuid;

    use super::*;
    use crate::disk::file_stamp;
    use crate::model::Labels;
    use crate::store::Store;
    use crate::store::locks::{Holder, LockMode};
    use crate::store::testing::{TestStore, on_both_databases};

    on_both_databases! {
        a_file_that_is_an_image_by_now_is_left_out,
        a_file_that_went_since_the_look_is_left_out,
        a_file_that_was_changed_since_the_look_is_skipped,
        an_overlay_is_bound_to_its_base_as_it_is_now,
        an_overlay_takes_a_base_that_others_changed_as_the_first,
        an_overlay_whose_base_is_gone_or_changing_is_skipped,
    }

    fn found(file: &str) -> NewImage {
        NewImage {
            id: Uuid::now_v7(),
            name: file.to_owned(),
            pool: "default".to_owned(),
            file: file.to_owned(),
            format: "raw".to_owned(),
            labels: Labels::new(),
            secrets: Default::default(),
            backing: None,
            origin: Origin::ReservedBy(Uuid::nil()),
        }
    }

    fn on(file: &str) -> NamedBase {
        NamedBase {
            file: file.to_owned(),
            name: format!("./{file}"),
            format: Some("raw".to_owned()),
            changed: None,
        }
    }

    /// A pool with a file in it, and what a look at it finds.
    fn looked_at(file: &str) -> (TempDir, PoolFolder, FileFacts) {
        let dir = tempfile::tempdir().unwrap();
        let pool = PoolFolder::open("default", dir.path()).unwrap();
        std::fs::write(dir.path().join(file), [1; 512]).unwrap();
        let facts = FileFacts {
            format: "raw".to_owned(),
            stamp: file_stamp(&pool.stat(file).unwrap().unwrap()),
            ..FileFacts::default()
        };
        (dir, pool, facts)
    }

    /// What the job's result says after this.
    async fn registered(store: &Store, new: &NewImage, base: Option<&NamedBase>) -> Value {
        registered_after(store, new, base, |_| {}).await
    }

    /// As [`registered`], when this is done with the file's folder after the scan looked.
    async fn registered_after(
        store: &Store,
        new: &NewImage,
        base: Option<&NamedBase>,
        meanwhile: impl FnOnce(&std::path::Path),
    ) -> Value {
        let mut result = json!({"registered": [{"image_id": new.id, "file": new.file}], "skipped": []});
        let (dir, pool, facts) = looked_at(&new.file);
        meanwhile(dir.path());
        let mut tx = store.begin().await.unwrap();
        register(&mut tx, Uuid::now_v7(), &pool, (new, base), &facts, &mut result)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        result
    }

    async fn a_file_that_is_an_image_by_now_is_left_out(TestStore { store, .. }: TestStore) {
        let first = registered(&store, &found("disk"), None).await;
        assert_eq!(first["registered"][0]["file"], "disk");
        let nothing = json!({"registered": [], "skipped": []});
        assert_eq!(registered(&store, &found("disk"), None).await, nothing);
        // A file that got its name, and is not on record under it yet.
        let mut tx = store.begin().await.unwrap();
        let making = found("making");
        tx.insert_image(&making).await.unwrap();
        tx.commit().await.unwrap();
        let file = FileName::published(making.id, 1);
        assert_eq!(registered(&store, &found(&file), None).await, nothing);
    }

    async fn a_file_that_went_since_the_look_is_left_out(TestStore { store, .. }: TestStore) {
        let gone = found("gone");
        let remove = |dir: &std::path::Path| std::fs::remove_file(dir.join("gone")).unwrap();
        let result = registered_after(&store, &gone, None, remove).await;
        assert_eq!(result, json!({"registered": [], "skipped": []}));
        assert_eq!(store.image(gone.id).await.unwrap_err().code, ErrorCode::NotFound);
        // What stood on it stands on nothing.
        let result = registered(&store, &found("overlay"), Some(&on("gone"))).await;
        assert_eq!(result["skipped"][0]["code"], "denied");
    }

    async fn a_file_that_was_changed_since_the_look_is_skipped(TestStore { store, .. }: TestStore) {
        let changed = found("changed");
        let write = |dir: &std::path::Path| std::fs::write(dir.join("changed"), [2; 1024]).unwrap();
        let result = registered_after(&store, &changed, None, write).await;
        assert_eq!(result["registered"], json!([]));
        assert_eq!(
            (&result["skipped"][0]["file"], &result["skipped"][0]["code"]),
            (&json!("changed"), &json!("image_busy"))
        );
        assert_eq!(store.image(changed.id).await.unwrap_err().code, ErrorCode::NotFound);
    }

    async fn an_overlay_is_bound_to_its_base_as_it_is_now(TestStore { store, .. }: TestStore) {
        let base = found("base");
        registered(&store, &base, None).await;
        let mut tx = store.begin().await.unwrap();
        tx.raise_generation(base.id).await.unwrap();
        tx.commit().await.unwrap();
        let overlay = found("overlay");
        registered(&store, &overlay, Some(&on("base"))).await;
        let record = store.image(overlay.id).await.unwrap();
        assert_eq!(
            (record.image.backing_id, record.backing_generation),
            (Some(base.id), Some(2))
        );
        assert_eq!(record.backing_name.as_deref(), Some("./base"));
    }

    async fn an_overlay_takes_a_base_that_others_changed_as_the_first(TestStore { store, .. }: TestStore) {
        let base = found("base");
        registered(&store, &base, None).await;
        let facts = FileFacts {
            format: "raw".to_owned(),
            virtual_size: 512,
            stamp: "written".to_owned(),
            ..FileFacts::default()
        };
        // The scan saw the base before any of the overlays was on record.
        let known = (1, store.image(base.id).await.unwrap().file_stamp);
        let changed = Some(ChangedBase {
            known,
            facts: facts.clone(),
        });
        let named = NamedBase { changed, ..on("base") };
        for overlay in [found("one"), found("two")] {
            registered(&store, &overlay, Some(&named)).await;
            assert_eq!(store.image(overlay.id).await.unwrap().backing_generation, Some(2));
        }
        let record = store.image(base.id).await.unwrap();
        assert_eq!(
            (record.image.virtual_size, record.file_stamp.as_deref()),
            (512, Some("written"))
        );
        // It was changed once more.
        let known = (2, Some("written".to_owned()));
        let named = NamedBase {
            changed: Some(ChangedBase { known, facts }),
            ..on("base")
        };
        let result = registered(&store, &found("three"), Some(&named)).await;
        assert_eq!(result["skipped"][0]["code"], "base_changed");
        assert_eq!(store.image(base.id).await.unwrap().image.generation, 2);
    }

    async fn an_overlay_whose_base_is_gone_or_changing_is_skipped(TestStore { store, .. }: TestStore) {
        let base = found("base");
        registered(&store, &base, None).await;
        let mut tx = store.begin().await.unwrap();
        let holder = Holder::Request {
            id: Uuid::now_v7(),
            process: Uuid::now_v7(),
            expires: None,
        };
        tx.lock_images(holder, &[(base.id, LockMode::Exclusive)]).await.unwrap();
        tx.commit().await.unwrap();
        for (named, code) in [("gone", "denied"), ("base", "image_busy")] {
            let result = registered(&store, &found("overlay"), Some(&on(named))).await;
            assert_eq!(result["registered"], json!([]));
            assert_eq!(
                (&result["skipped"][0]["file"], &result["skipped"][0]["code"]),
                (&json!("overlay"), &json!(code))
            );
        }
    }
}
