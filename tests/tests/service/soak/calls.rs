//! HTTP calls that go on over a killed server: asked again, with the same key, until there is an answer.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::Value;
use uuid::Uuid;

use super::Soak;

/// How often something is asked again. The program is away for a second or two.
const TRIES: u32 = 600;
const PAUSE: Duration = Duration::from_millis(100);

pub struct Calls {
    url: String,
    client: reqwest::Client,
}

impl Calls {
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            client: reqwest::Client::new(),
        }
    }

    /// Asks until there is an answer; one that says "not now" is none.
    pub async fn ask(&self, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
        let key = Uuid::now_v7().to_string();
        for _ in 0..TRIES {
            let mut request = self.client.request(method.clone(), format!("{}{path}", self.url));
            if method == Method::POST {
                request = request.header("idempotency-key", &key);
            }
            if !body.is_null() {
                request = request.json(body);
            }
            if let Some(answer) = answer(request).await {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
        panic!("no answer to {method} {path}");
    }

    pub async fn get(&self, path: &str) -> Value {
        self.good(Method::GET, path, &Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.good(Method::POST, path, &body).await
    }

    async fn good(&self, method: Method, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask(method.clone(), path, body).await;
        assert!(status.is_success(), "{method} {path} {body}: {status} {answer}");
        answer
    }

    /// Queues a job.
    pub async fn queue(&self, soak: &Soak, path: &str, body: Value) -> String {
        let job = self.post(path, body).await["id"].as_str().unwrap().to_owned();
        soak.accept(&job);
        job
    }

    /// Queues a job that must succeed, and waits for its end.
    pub async fn run(&self, soak: &Soak, path: &str, body: Value) -> Value {
        let job = self.queue(soak, path, body).await;
        let ended = self.ended(&job).await;
        assert_eq!(ended["state"], "succeeded", "{ended}");
        ended
    }

    pub async fn ended(&self, job: &str) -> Value {
        for _ in 0..TRIES {
            let job = self.get(&format!("/v1/jobs/{job}?wait=30s")).await;
            if !job["finished_at"].is_null() {
                return job;
            }
        }
        panic!("job {job} does not end");
    }

    /// How often a job ended, by its events.
    pub async fn endings(&self, job: &str) -> usize {
        let url = format!("{}/v1/jobs/{job}/events", self.url);
        let events = self.client.get(url).send().await.unwrap().text().await.unwrap();
        let data = events.lines().filter_map(|line| line.strip_prefix("data:"));
        let ended = data.filter(|data| {
            let event: Value = serde_json::from_str(data).unwrap();
            ["succeeded", "failed", "cancelled"]
                .iter()
                .any(|end| event["data"]["state"] == *end)
        });
        ended.count()
    }

    /// A raw image with these bytes.
    pub async fn upload(&self, name: &str, bytes: &[u8]) -> String {
        let request = serde_json::json!({"name": name, "format": "raw", "source": {"upload": true}});
        let id = self.post("/v1/images/import", request).await["id"]
            .as_str()
            .unwrap()
            .to_owned();
        for _ in 0..TRIES {
            if self.get(&format!("/v1/images/{id}")).await["state"] == "ready" {
                return id;
            }
            let put = self
                .client
                .put(format!("{}/v1/images/{id}/file", self.url))
                .body(bytes.to_vec());
            if put.send().await.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        panic!("image {id} does not get ready");
    }

    /// What the guest sees.
    pub async fn data(&self, id: &str) -> Vec<u8> {
        for _ in 0..TRIES {
            let sent = self
                .client
                .get(format!("{}/v1/images/{id}/data", self.url))
                .send()
                .await;
            if let Ok(answer) = sent
                && answer.status().is_success()
                && let Ok(bytes) = answer.bytes().await
            {
                return bytes.to_vec();
            }
            tokio::time::sleep(PAUSE).await;
        }
        panic!("image {id} cannot be read");
    }

    /// Deletes an image; one that is gone was deleted by an earlier try.
    pub async fn delete(&self, id: &str) {
        let (status, answer) = self
            .ask(Method::DELETE, &format!("/v1/images/{id}"), &Value::Null)
            .await;
        assert!(
            status.is_success() || status == StatusCode::NOT_FOUND,
            "{status} {answer}"
        );
    }
}

/// `None` while the program is away, or a request of ours before the kill holds what this one wants.
async fn answer(request: reqwest::RequestBuilder) -> Option<(StatusCode, Value)> {
    let answer = request.send().await.ok()?;
    let status = answer.status();
    let body: Value = match status {
        StatusCode::NO_CONTENT => Value::Null,
        _ => answer.json().await.ok()?,
    };
    let later = status == StatusCode::SERVICE_UNAVAILABLE || body["code"] == "image_busy";
    (!later).then_some((status, body))
}
