//! A server of the test's own, and a client for it.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vdisk_api::access::Policy;
use vdisk_api::tls::TlsFiles;
use vdisk_api::vdisk_service::model::Role;
use vdisk_api::vdisk_service::request::{Call, NewToken};
use vdisk_api::vdisk_service::{Service, ServiceConfig};
use vdisk_api::{App, server};

/// A running server. Stopped and waited for with [`Server::stop`]; ended with its runtime otherwise.
pub struct Server {
    pub url: String,
    pub dir: TempDir,
    service: Service,
    client: Client,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut ServiceConfig)) -> Self {
        Self::start_as(change, Policy::default()).await
    }

    pub async fn start_as(change: impl FnOnce(&mut ServiceConfig), policy: Policy) -> Self {
        Self::start_over(change, policy, None).await
    }

    /// A server that speaks TLS; `request` and what is built on it do not.
    pub async fn start_tls(policy: Policy, files: &TlsFiles) -> Self {
        Self::start_over(|_| {}, policy, Some(files)).await
    }

    async fn start_over(change: impl FnOnce(&mut ServiceConfig), policy: Policy, tls: Option<&TlsFiles>) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), change, policy, tls).await
    }

    /// Ends the server as a signal would, and starts another on its folder.
    pub async fn restart(self, change: impl FnOnce(&mut ServiceConfig)) -> Self {
        let Self {
            dir,
            service,
            stop,
            task,
            ..
        } = self;
        // Every handle to the service keeps its folder taken.
        drop(service);
        let _ = stop.unwrap().send(());
        task.await.unwrap();
        Self::start_in(dir, change, Policy::default(), None).await
    }

    async fn start_in(
        dir: TempDir,
        change: impl FnOnce(&mut ServiceConfig),
        policy: Policy,
        tls: Option<&TlsFiles>,
    ) -> Self {
        let mut config = ServiceConfig::new(dir.path().join("data"));
        config.poll_interval = Duration::from_millis(50);
        config.progress_interval = Duration::from_millis(20);
        change(&mut config);
        let service = Service::open(config).await.unwrap();
        let app = App::with_policy(service.clone(), policy).with_tls(tls.map(|files| files.load().unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let until = async move {
            let _ = stopped.await;
        };
        let task = tokio::spawn(server::serve(listener, app, until, Duration::from_secs(5)));
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        Self {
            url,
            dir,
            service,
            client,
            stop: Some(stop),
            task,
        }
    }

    /// A new token with this role.
    pub async fn token(&self, name: &str, role: Role) -> String {
        let (name, expires_in_days) = (name.to_owned(), None);
        let request = NewToken {
            name,
            role,
            expires_in_days,
        };
        let (_, text) = self.service.create_token(request, &Call::default()).await.unwrap();
        text.unwrap().reveal().to_owned()
    }

    /// Ends the server as a signal would.
    pub async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.task.await.unwrap();
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(&body).send().await.unwrap()).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::PATCH, path).json(&body).send().await.unwrap()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, path).send().await.unwrap()).await
    }

    pub async fn put(&self, path: &str, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
        let request = self.request(Method::PUT, path).body(body);
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value));
        Answer::of(request.send().await.unwrap()).await
    }

    pub async fn create(&self, name: &str, more: Value) -> String {
        let mut body = json!({"name": name, "format": "qcow2"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.post("/v1/images", body).await.expect(StatusCode::CREATED).id()
    }

    /// Starts an upload and returns the image's id.
    pub async fn import(&self, name: &str, format: &str) -> String {
        let body = json!({"name": name, "format": format, "source": {"upload": true}});
        self.post("/v1/images/import", body)
            .await
            .expect(StatusCode::CREATED)
            .id()
    }

    /// Uploads a whole file.
    pub async fn upload(&self, name: &str, format: &str, bytes: Vec<u8>) -> String {
        let id = self.import(name, format).await;
        self.put(&format!("/v1/images/{id}/file"), &[], bytes)
            .await
            .expect(StatusCode::OK);
        id
    }

    /// The job that an answer names, once it has ended.
    pub async fn ended(&self, answer: Answer) -> Value {
        let id = answer.expect(StatusCode::ACCEPTED).id();
        for _ in 0..60 {
            let job = self
                .get(&format!("/v1/jobs/{id}?wait=2s"))
                .await
                .expect(StatusCode::OK)
                .body;
            if ["succeeded", "failed", "cancelled"].contains(&job["state"].as_str().unwrap()) {
                return job;
            }
        }
        panic!("job {id} does not end");
    }
}

/// An answer with its body read.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub bytes: Vec<u8>,
    pub body: Value,
}

impl Answer {
    pub async fn of(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.unwrap().to_vec();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Self {
            status,
            headers,
            bytes,
            body,
        }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    pub fn expect(self, status: StatusCode) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes));
        self
    }

    #[track_caller]
    pub fn id(&self) -> String {
        self.body["id"].as_str().expect("an id").to_owned()
    }

    /// Asserts an RFC 9457 problem with this status and code, and returns its sentence.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> &str {
        let found = (self.status.as_u16(), self.body["code"].as_str().unwrap_or("none"));
        assert_eq!(found, (status, code), "{}", String::from_utf8_lossy(&self.bytes));
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["type"], format!("urn:vdisk:problem:{code}"));
        let detail = self.body["detail"].as_str().unwrap();
        assert!(detail.len() > 10, "the detail says nothing: {detail}");
        detail
    }
}
