//! What the scenarios ask of a transport.

use serde_json::Value;

/// Where a new image comes from and what it becomes.
#[derive(Clone, Copy)]
pub struct Conversion<'a> {
    pub name: &'a str,
    pub format: &'a str,
    pub compress: bool,
    pub backing: Option<&'a str>,
    pub rate_limit: Option<u64>,
}

impl<'a> Conversion<'a> {
    pub fn to(name: &'a str, format: &'a str) -> Self {
        Self {
            name,
            format,
            compress: false,
            backing: None,
            rate_limit: None,
        }
    }
}

/// How a job ended, and what a watcher saw of it.
#[derive(Debug)]
pub struct Ended {
    pub state: String,
    pub image_id: Option<String>,
    pub error: Option<String>,
    /// Types of the events, in order.
    pub seen: Vec<String>,
    pub done_bytes: u64,
    pub total_bytes: Option<u64>,
    pub attempt: u64,
}

/// Why a request was refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: String,
    pub dependents: Vec<String>,
}

/// A transport.
pub trait Client {
    /// Uploads a file that has this digest, and returns the image's id.
    async fn upload(&self, name: &str, format: &str, bytes: Vec<u8>, sha256: [u8; 32]) -> String;
    async fn state(&self, id: &str) -> String;
    async fn info(&self, id: &str) -> Value;
    /// Start and length of every extent.
    async fn map(&self, id: &str) -> Vec<(u64, u64)>;
    /// Names, the image itself first.
    async fn chain(&self, id: &str) -> Vec<String>;
    async fn overlay(&self, name: &str, backing: &str) -> String;
    /// Each of the three returns the job's id.
    async fn convert(&self, id: &str, conversion: Conversion<'_>) -> String;
    async fn rebase(&self, id: &str, backing: Option<&str>) -> String;
    async fn commit(&self, id: &str, drop: bool) -> String;
    /// Bytes that a job has done by now.
    async fn done_bytes(&self, job: &str) -> u64;
    /// Watches a job until it has ended.
    async fn watch(&self, job: &str) -> Ended;
    async fn data(&self, id: &str) -> Vec<u8>;
    async fn file(&self, id: &str) -> Vec<u8>;
    async fn delete(&self, id: &str) -> Result<(), Refusal>;
    async fn image_count(&self) -> usize;
}
