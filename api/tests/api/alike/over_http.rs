//! The scenario's steps over HTTP.

use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::{Door, Make, Outcome, Verb};
use crate::server::{Answer, Server};

pub struct OverHttp<'a>(pub &'a Server);

fn outcome(answer: &Answer) -> Outcome {
    if answer.status.is_success() {
        return Ok(answer.body.clone());
    }
    assert_eq!(answer.header("content-type"), "application/problem+json", "{answer:?}");
    let text = |field: &str| answer.body[field].as_str().map(str::to_owned);
    let dependents = answer.body["dependents"].as_array().map_or(0, Vec::len);
    Err((text("code").unwrap(), text("field"), dependents))
}

/// Without what is not said.
fn body(fields: Value) -> Value {
    let fields = fields.as_object().unwrap().clone().into_iter();
    Value::Object(fields.filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>())
}

/// Ids that are no plain segment of a path.
fn segment(text: &str) -> String {
    text.replace('/', "%2f")
}

impl OverHttp<'_> {
    async fn get(&self, path: &str) -> Outcome {
        outcome(&self.0.get(path).await)
    }

    async fn post(&self, path: &str, body: Value) -> Outcome {
        outcome(&self.0.post(path, body).await)
    }

    async fn gone(&self, path: &str) -> Outcome {
        outcome(&self.0.delete(path).await)
    }

    async fn ended(&self, answer: Answer) -> Outcome {
        if answer.status != StatusCode::ACCEPTED {
            return outcome(&answer);
        }
        Ok(self.0.ended(answer).await)
    }
}

impl Door for OverHttp<'_> {
    async fn create(&self, make: &Make<'_>) -> Outcome {
        let options: Map<_, _> = make
            .options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        let fields = json!({"name": make.name, "format": make.format, "virtual_size": make.size, "backing": make.backing,
            "options": options});
        let request = self.0.request(Method::POST, "/v1/images").json(&body(fields));
        let request = make
            .key
            .into_iter()
            .fold(request, |request, key| request.header("idempotency-key", key));
        outcome(&Answer::of(request.send().await.unwrap()).await)
    }

    async fn image(&self, id: &str) -> Outcome {
        self.get(&format!("/v1/images/{}", segment(id))).await
    }

    async fn images(&self, label: Option<&str>, page_size: u32) -> Outcome {
        let label = label.map_or(String::new(), |label| format!("&label={}", label.replace('=', "%3d")));
        self.get(&format!("/v1/images?page_size={page_size}{label}")).await
    }

    async fn update(
        &self,
        id: &str,
        name: Option<&str>,
        label: Option<(&str, &str)>,
        protected: Option<bool>,
    ) -> Outcome {
        let labels = label.map(|(key, value)| json!({key: value}));
        let fields = body(json!({"name": name, "labels": labels, "protected": protected}));
        outcome(&self.0.patch(&format!("/v1/images/{id}"), fields).await)
    }

    async fn delete(&self, id: &str) -> Outcome {
        self.gone(&format!("/v1/images/{id}")).await
    }

    async fn info(&self, id: &str) -> Outcome {
        self.get(&format!("/v1/images/{}/info", segment(id))).await
    }

    async fn chain(&self, id: &str) -> Outcome {
        self.get(&format!("/v1/images/{}/chain", segment(id))).await
    }

    async fn map(&self, id: &str, start: u64) -> Outcome {
        let page = self
            .get(&format!("/v1/images/{}/map?start={start}", segment(id)))
            .await?;
        Ok(page["extents"].clone())
    }

    async fn measure(&self, id: &str, format: &str) -> Outcome {
        self.post(
            &format!("/v1/images/{}/measure", segment(id)),
            json!({"format": format}),
        )
        .await
    }

    async fn run(&self, id: &str, verb: Verb<'_>) -> Outcome {
        let (name, fields) = match verb {
            Verb::Convert { name, format, snapshot } => {
                ("convert", json!({"name": name, "format": format, "snapshot": snapshot}))
            }
            Verb::Rebase { backing } => ("rebase", json!({"backing": backing})),
            Verb::Commit => ("commit", json!({})),
            Verb::Check => ("check", json!({})),
            Verb::Resize { size, shrink } => ("resize", json!({"virtual_size": size, "shrink": shrink})),
            Verb::Compare { other } => ("compare", json!({"other": other})),
            Verb::Flatten => ("flatten", json!({})),
            Verb::CompressZlib => ("compress", json!({"algorithm": "zlib"})),
        };
        let answer = self.0.post(&format!("/v1/images/{id}/{name}"), body(fields)).await;
        self.ended(answer).await
    }

    async fn snapshot(&self, id: &str, name: &str) -> Outcome {
        self.post(&format!("/v1/images/{id}/snapshots"), json!({"name": name}))
            .await
    }

    async fn snapshots(&self, id: &str) -> Outcome {
        Ok(self.get(&format!("/v1/images/{id}/snapshots")).await?["items"].clone())
    }

    async fn apply(&self, id: &str, name: &str) -> Outcome {
        self.post(&format!("/v1/images/{id}/snapshots/{name}/apply"), json!({}))
            .await
    }

    async fn drop_snapshot(&self, id: &str, name: &str) -> Outcome {
        self.gone(&format!("/v1/images/{id}/snapshots/{name}")).await
    }

    async fn job(&self, id: &str) -> Outcome {
        self.get(&format!("/v1/jobs/{id}")).await
    }

    async fn cancel(&self, id: &str) -> Outcome {
        self.post(&format!("/v1/jobs/{id}/cancel"), json!({})).await
    }

    async fn secret(&self, name: &str, value: &str) -> Outcome {
        self.post("/v1/secrets", json!({"name": name, "value": value})).await
    }

    async fn drop_secret(&self, id: &str) -> Outcome {
        self.gone(&format!("/v1/secrets/{id}")).await
    }

    async fn pool(&self, name: &str) -> Outcome {
        self.get(&format!("/v1/pools/{name}")).await
    }

    async fn token(&self, name: &str, days: u32) -> Outcome {
        self.post(
            "/v1/tokens",
            json!({"name": name, "role": "reader", "expires_in_days": days}),
        )
        .await
    }

    async fn webhook(&self, url: &str, secret: &str) -> Outcome {
        let made = self
            .post(
                "/v1/webhooks",
                json!({"url": url, "secret": secret, "events": ["job.state"]}),
            )
            .await?;
        Ok(json!({"id": made["id"], "url": made["url"], "events": made["events"]}))
    }

    async fn data(&self, id: &str, first: u64, length: u64) -> Outcome {
        let range = format!("bytes={first}-{}", first + length - 1);
        let path = format!("/v1/images/{}/data", segment(id));
        let request = self.0.request(Method::GET, &path).header("range", range);
        let answer = Answer::of(request.send().await.unwrap()).await;
        outcome(&answer).map(|_| json!({"bytes": answer.bytes}))
    }

    async fn import_url(&self, name: &str, url: &str) -> Outcome {
        let answer = self
            .0
            .post("/v1/images/import", json!({"name": name, "source": {"url": url}}))
            .await;
        self.ended(answer).await
    }
}
