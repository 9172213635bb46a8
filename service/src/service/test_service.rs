//! Services that tests begin with.

use serde_json::json;
use tempfile::TempDir;

use super::Service;
use crate::config::ServiceConfig;
use crate::model::Image;
use crate::request::Call;

pub async fn service() -> (TempDir, Service) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ServiceConfig::new(dir.path());
    config.ballast_bytes = 0;
    (dir, Service::open(config).await.unwrap())
}

pub async fn service_with_an_image() -> (TempDir, Service, Image) {
    let (dir, service) = service().await;
    let image = an_image(&service).await;
    (dir, service, image)
}

/// A raw disk of 1 MiB.
pub async fn an_image(service: &Service) -> Image {
    let request = json!({"name": "disk", "format": "raw", "virtual_size": 1 << 20});
    let request = serde_json::from_value(request).unwrap();
    service.create_image(request, &Call::default()).await.unwrap()
}
