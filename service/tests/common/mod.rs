//! A service in a temporary folder, with short intervals.

#![expect(dead_code, reason = "each test program uses its part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures::{TryStreamExt, stream};
use tempfile::TempDir;
use vdisk_service::model::{Image, ImageId, Job, JobState};
use vdisk_service::request::{
    Call, CreateImage, ImportImage, ImportOutcome, ImportSource, UploadPart, UploadStatus, WaitUntil,
};
use vdisk_service::{Bytes, ErrorCode, Result, Service, ServiceConfig};

/// The format of overlays in these tests.
pub const OVERLAY: &str = "qcow2";
pub const MIB: u64 = 1 << 20;
/// A request that is sent once.
pub const NONE: Call = Call { idempotency_key: None };

pub struct Lab {
    pub dir: Folder,
    pub service: Service,
}

/// Where a service has its files.
pub enum Folder {
    /// Removed when the test is through with it.
    Own(TempDir),
    /// Somebody else removes it.
    Lent(PathBuf),
}

impl Folder {
    pub fn path(&self) -> &Path {
        match self {
            Self::Own(dir) => dir.path(),
            Self::Lent(path) => path,
        }
    }
}

impl From<TempDir> for Folder {
    fn from(dir: TempDir) -> Self {
        Self::Own(dir)
    }
}

impl Lab {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(adjust: impl FnOnce(&mut ServiceConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = quick_config(dir.path());
        adjust(&mut config);
        let service = Service::open(config).await.unwrap();
        Self {
            dir: dir.into(),
            service,
        }
    }

    /// Ends the service and starts another one on the same folder.
    pub async fn restart(self) -> Self {
        self.service.shutdown(Duration::from_secs(5)).await;
        let Self { dir, service } = self;
        drop(service);
        let service = Service::open(quick_config(dir.path())).await.unwrap();
        Self { dir, service }
    }

    pub fn pool(&self) -> PathBuf {
        self.dir.path().join("pools/default")
    }

    /// Names in the pool's folder.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.pool()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub async fn create(&self, name: &str, format: &str, size: u64) -> Image {
        self.service
            .create_image(new_image(name, format, Some(size), None), &Call::default())
            .await
            .unwrap()
    }

    pub async fn overlay(&self, name: &str, base: ImageId) -> Image {
        self.service
            .create_image(new_image(name, OVERLAY, None, Some(base)), &Call::default())
            .await
            .unwrap()
    }

    /// An image with these bytes, uploaded as a file of this format.
    pub async fn upload(&self, name: &str, format: Option<&str>, bytes: &[u8]) -> Result<Image> {
        let outcome = self
            .service
            .import_image(import(name, format, ImportSource::Upload(true)), &Call::default())
            .await?;
        let ImportOutcome::Uploading(image) = outcome else {
            panic!("an upload was asked for")
        };
        let part = UploadPart {
            length: Some(bytes.len() as u64),
            ..UploadPart::default()
        };
        match self.service.upload(image.id, part, body(bytes, 100_000)).await? {
            UploadStatus::Complete(image) => Ok(*image),
            UploadStatus::Incomplete { received } => panic!("the upload stopped at {received}"),
        }
    }

    /// Writes guest bytes into an image behind the service's back with the peer's tools, as a guest would.
    pub fn qemu_io(&self, file: &str, format: &str, command: &str) -> bool {
        let Some(mut qemu_io) = tool("qemu-io") else {
            return false;
        };
        let path = self.pool().join(file);
        assert!(
            qemu_io
                .args(["-f", format, "-c", command])
                .arg(path)
                .output()
                .unwrap()
                .status
                .success(),
            "{command}"
        );
        true
    }

    pub async fn data(&self, id: ImageId) -> Vec<u8> {
        collect(self.service.read_data(id, None).await.unwrap().body).await
    }

    /// Waits until a worker has the job. (A wait for a change of state would miss one that was there already.)
    pub async fn until_running(&self, job: &Job) {
        for _ in 0..20_000 {
            if self.service.job(job.id).await.unwrap().state == JobState::Running {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no worker took the job");
    }

    pub async fn finish(&self, job: Job) -> Job {
        let done = self
            .service
            .wait_job(job.id, WaitUntil::Finished, Duration::from_secs(60))
            .await
            .unwrap();
        assert!(done.is_finished(), "{done:?}");
        done
    }

    pub async fn succeed(&self, job: Job) -> Job {
        let done = self.finish(job).await;
        assert_eq!(done.state, JobState::Succeeded, "{:?}", done.error);
        done
    }

    pub async fn fail(&self, job: Job) -> ErrorCode {
        let done = self.finish(job).await;
        assert_eq!(done.state, JobState::Failed, "{done:?}");
        done.error.unwrap().code()
    }

    /// Only files of images on record lie in the pool, and every record has its file.
    pub async fn assert_tidy(&self) {
        let images = self
            .service
            .list_images(&Default::default(), &Default::default())
            .await
            .unwrap()
            .items;
        assert_eq!(
            self.files().len(),
            images.len(),
            "{:?} for {} images",
            self.files(),
            images.len()
        );
    }
}

pub fn quick_config(data_dir: &Path) -> ServiceConfig {
    ServiceConfig {
        workers: 2,
        threads_per_job: 2,
        lease: Duration::from_secs(3),
        heartbeat: Duration::from_millis(500),
        progress_interval: Duration::from_millis(50),
        poll_interval: Duration::from_millis(100),
        ballast_bytes: 0,
        ..ServiceConfig::new(data_dir)
    }
}

pub fn new_image(name: &str, format: &str, size: Option<u64>, backing: Option<ImageId>) -> CreateImage {
    CreateImage {
        name: name.to_owned(),
        pool: None,
        format: format.to_owned(),
        virtual_size: size,
        backing,
        options: Default::default(),
        labels: Default::default(),
        secrets: Default::default(),
    }
}

pub fn import(name: &str, format: Option<&str>, source: ImportSource) -> ImportImage {
    ImportImage {
        name: name.to_owned(),
        pool: None,
        format: format.map(str::to_owned),
        source,
        target_format: None,
        backing: None,
        labels: Default::default(),
    }
}

/// A request that can be sent twice.
pub fn with_key(key: &str) -> Call {
    Call {
        idempotency_key: Some(key.to_owned()),
    }
}

pub fn json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub fn body(bytes: &[u8], chunk: usize) -> impl futures::Stream<Item = Result<Bytes, String>> + Send + Unpin + use<> {
    let chunks: Vec<_> = bytes
        .chunks(chunk.max(1))
        .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
        .collect();
    stream::iter(chunks)
}

pub async fn collect(body: futures::stream::BoxStream<'static, Result<Bytes>>) -> Vec<u8> {
    let pieces: Vec<Bytes> = body.try_collect().await.unwrap();
    pieces.concat()
}

/// Bytes that do not repeat and do not compress to nothing: data in every other 64 KiB, zeros between.
pub fn sample(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = vec![0; len];
    for (number, chunk) in bytes.chunks_mut(64 << 10).enumerate() {
        if number % 2 == 0 {
            for byte in chunk.iter_mut() {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 60) as u8;
            }
        }
    }
    bytes
}

/// A tool of the peer; `None` (said on stderr) when it is not installed and `VDISK_REQUIRE` is not `all`.
pub fn tool(name: &str) -> Option<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
    {
        return Some(Command::new(found));
    }
    assert_ne!(
        std::env::var("VDISK_REQUIRE").as_deref(),
        Ok("all"),
        "{name} is required but not installed"
    );
    eprintln!("skipped a part: {name} is not installed");
    None
}

pub fn code<T>(outcome: Result<T>) -> ErrorCode {
    outcome.err().expect("an error").code
}
