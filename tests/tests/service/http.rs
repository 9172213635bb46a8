//! The HTTP transport.

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::client::{Client, Conversion, Ended, Refusal};

pub struct Http {
    url: String,
    client: reqwest::Client,
}

impl Http {
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            client: reqwest::Client::new(),
        }
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        let request = self.client.request(method, format!("{}{path}", self.url));
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        request.send().await.unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        good(self.send(Method::GET, path, None).await)
            .await
            .json()
            .await
            .unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        good(self.send(Method::POST, path, Some(body)).await)
            .await
            .json()
            .await
            .unwrap()
    }

    async fn bytes(&self, path: &str) -> Vec<u8> {
        good(self.send(Method::GET, path, None).await)
            .await
            .bytes()
            .await
            .unwrap()
            .to_vec()
    }
}

async fn good(response: Response) -> Response {
    let status = response.status();
    if status.is_success() {
        return response;
    }
    panic!("{status}: {}", response.text().await.unwrap_or_default());
}

fn id(value: &Value) -> String {
    value["id"].as_str().unwrap().to_owned()
}

fn hex(digest: [u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Client for Http {
    async fn upload(&self, name: &str, format: &str, bytes: Vec<u8>, sha256: [u8; 32]) -> String {
        let body = json!({"name": name, "format": format, "source": {"upload": true}});
        let image = self.post("/v1/images/import", body).await;
        let url = format!("{}{}", self.url, image["upload_url"].as_str().unwrap());
        let put = self
            .client
            .put(url)
            .header("x-checksum-sha256", hex(sha256))
            .body(bytes);
        good(put.send().await.unwrap()).await;
        id(&image)
    }

    async fn state(&self, id: &str) -> String {
        self.get(&format!("/v1/images/{id}")).await["state"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    async fn info(&self, id: &str) -> Value {
        self.get(&format!("/v1/images/{id}/info")).await
    }

    async fn map(&self, id: &str) -> Vec<(u64, u64)> {
        let request = self
            .client
            .get(format!("{}/v1/images/{id}/map", self.url))
            .header("accept", "application/x-ndjson");
        let text = good(request.send().await.unwrap()).await.text().await.unwrap();
        let extents = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        extents
            .map(|extent| (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap()))
            .collect()
    }

    async fn chain(&self, id: &str) -> Vec<String> {
        let chain = self.get(&format!("/v1/images/{id}/chain")).await;
        let layers = chain["layers"].as_array().unwrap().iter();
        layers.map(|layer| layer["name"].as_str().unwrap().to_owned()).collect()
    }

    async fn overlay(&self, name: &str, backing: &str) -> String {
        id(&self
            .post(
                "/v1/images",
                json!({"name": name, "format": "qcow2", "backing": backing}),
            )
            .await)
    }

    async fn convert(&self, image: &str, to: Conversion<'_>) -> String {
        let body = json!({"name": to.name, "format": to.format, "compress": to.compress, "backing": to.backing,
            "rate_limit": to.rate_limit});
        id(&self.post(&format!("/v1/images/{image}/convert"), body).await)
    }

    async fn rebase(&self, image: &str, backing: Option<&str>) -> String {
        id(&self
            .post(
                &format!("/v1/images/{image}/rebase"),
                json!({"backing": backing, "mode": "safe"}),
            )
            .await)
    }

    async fn commit(&self, image: &str, drop: bool) -> String {
        id(&self
            .post(&format!("/v1/images/{image}/commit"), json!({"drop": drop}))
            .await)
    }

    async fn done_bytes(&self, job: &str) -> u64 {
        self.get(&format!("/v1/jobs/{job}")).await["progress"]["done_bytes"]
            .as_u64()
            .unwrap()
    }

    async fn watch(&self, job: &str) -> Ended {
        let events = self.bytes(&format!("/v1/jobs/{job}/events")).await;
        let events = String::from_utf8(events).unwrap();
        let seen = events.lines().filter_map(|line| line.strip_prefix("event:"));
        let seen = seen.map(|kind| kind.trim().to_owned()).collect();
        let job = self.get(&format!("/v1/jobs/{job}?wait=30s")).await;
        Ended {
            state: job["state"].as_str().unwrap().to_owned(),
            image_id: job["result"]["image_id"].as_str().map(str::to_owned),
            error: job["error"]["detail"].as_str().map(str::to_owned),
            seen,
            done_bytes: job["progress"]["done_bytes"].as_u64().unwrap(),
            total_bytes: job["progress"]["total_bytes"].as_u64(),
            attempt: job["attempt"].as_u64().unwrap(),
        }
    }

    async fn data(&self, id: &str) -> Vec<u8> {
        self.bytes(&format!("/v1/images/{id}/data")).await
    }

    async fn file(&self, id: &str) -> Vec<u8> {
        self.bytes(&format!("/v1/images/{id}/file")).await
    }

    async fn delete(&self, id: &str) -> Result<(), Refusal> {
        let response = self.send(Method::DELETE, &format!("/v1/images/{id}"), None).await;
        if response.status().is_success() {
            return Ok(());
        }
        let problem: Value = response.json().await.unwrap();
        let dependents = problem["dependents"].as_array().cloned().unwrap_or_default();
        Err(Refusal {
            code: problem["code"].as_str().unwrap().to_owned(),
            dependents: dependents.iter().map(|id| id.as_str().unwrap().to_owned()).collect(),
        })
    }

    async fn image_count(&self) -> usize {
        self.get("/v1/images?page_size=1000").await["items"]
            .as_array()
            .unwrap()
            .len()
    }
}
