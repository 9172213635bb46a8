//! One scenario through both transports: what each step answers is the same, field by field, and so is every refusal.

mod over_grpc;
mod over_http;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::server::Server;
use over_grpc::OverGrpc;
use over_http::OverHttp;

/// What an image is made of.
#[derive(Clone, Debug, Default)]
pub struct Make<'a> {
    pub name: &'a str,
    pub format: &'a str,
    pub size: Option<u64>,
    pub backing: Option<&'a str>,
    pub options: &'a [(&'a str, &'a str)],
    pub key: Option<&'a str>,
}

/// A verb that queues a job.
#[derive(Clone, Copy, Debug)]
pub enum Verb<'a> {
    Convert {
        name: &'a str,
        format: &'a str,
        snapshot: Option<&'a str>,
    },
    Rebase {
        backing: Option<&'a str>,
    },
    Commit,
    Check,
    Resize {
        size: u64,
        shrink: bool,
    },
    Compare {
        other: &'a str,
    },
    Flatten,
    CompressZlib,
}

/// What a transport answered: a value, or a refusal with its code, field, and number of dependents.
pub type Outcome = Result<Value, (String, Option<String>, usize)>;

/// A transport. Values are JSON as HTTP shows it.
pub trait Door {
    async fn create(&self, make: &Make<'_>) -> Outcome;
    async fn image(&self, id: &str) -> Outcome;
    async fn images(&self, label: Option<&str>, page_size: u32) -> Outcome;
    async fn update(
        &self,
        id: &str,
        name: Option<&str>,
        label: Option<(&str, &str)>,
        protected: Option<bool>,
    ) -> Outcome;
    async fn delete(&self, id: &str) -> Outcome;
    async fn info(&self, id: &str) -> Outcome;
    async fn chain(&self, id: &str) -> Outcome;
    async fn map(&self, id: &str, start: u64) -> Outcome;
    async fn measure(&self, id: &str, format: &str) -> Outcome;
    /// The job when it has ended.
    async fn run(&self, id: &str, verb: Verb<'_>) -> Outcome;
    async fn snapshot(&self, id: &str, name: &str) -> Outcome;
    async fn snapshots(&self, id: &str) -> Outcome;
    async fn apply(&self, id: &str, name: &str) -> Outcome;
    async fn drop_snapshot(&self, id: &str, name: &str) -> Outcome;
    async fn job(&self, id: &str) -> Outcome;
    async fn cancel(&self, id: &str) -> Outcome;
    async fn secret(&self, name: &str, value: &str) -> Outcome;
    async fn drop_secret(&self, id: &str) -> Outcome;
    async fn pool(&self, name: &str) -> Outcome;
    async fn token(&self, name: &str, days: u32) -> Outcome;
    async fn webhook(&self, url: &str, secret: &str) -> Outcome;
    async fn data(&self, id: &str, first: u64, length: u64) -> Outcome;
    async fn import_url(&self, name: &str, url: &str) -> Outcome;
}

const UNKNOWN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
const MIB: u64 = 1 << 20;

/// Ids become the number of their first mention; moments and what depends on the machine go.
#[derive(Default)]
struct Plain(BTreeMap<String, usize>);

impl Plain {
    fn of(&mut self, value: Value) -> Value {
        match value {
            Value::String(text) if is_id(&text) => {
                let next = self.0.len();
                json!(format!("#{}", self.0.entry(text).or_insert(next)))
            }
            Value::Array(items) => items.into_iter().map(|item| self.of(item)).collect(),
            Value::Object(fields) => {
                let kept = fields.into_iter().filter(|(name, _)| !varies(name));
                kept.map(|(name, value)| (name, self.of(value))).collect()
            }
            other => other,
        }
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 36 && text.parse::<uuid::Uuid>().is_ok()
}

fn varies(field: &str) -> bool {
    const FIELDS: [&str; 10] = [
        "version",
        "bytes_per_second",
        "eta_seconds",
        "steps",
        "capacity",
        "free",
        "token",
        "actual-size",
        "allocated_size",
        "allocated",
    ];
    FIELDS.contains(&field) || field.ends_with("_at") || field.starts_with("date-") || field.starts_with("vm-clock")
}

/// What every step answered.
struct Log<'a, D> {
    door: &'a D,
    plain: Plain,
    lines: Vec<(String, Outcome)>,
}

impl<D: Door> Log<'_, D> {
    fn note(&mut self, step: &str, outcome: Outcome) -> String {
        let id = outcome
            .as_ref()
            .ok()
            .and_then(|value| value["id"].as_str())
            .unwrap_or_default()
            .to_owned();
        let outcome = outcome.map(|value| self.plain.of(value));
        self.lines.push((step.to_owned(), outcome));
        id
    }
}

async fn scenario<D: Door>(door: &D) -> Vec<(String, Outcome)> {
    let mut log = Log {
        door,
        plain: Plain::default(),
        lines: Vec::new(),
    };
    let (base, overlay) = records(&mut log).await;
    looks(&mut log, &base, &overlay).await;
    let copy = verbs(&mut log, &base, &overlay).await;
    snapshots(&mut log, &copy).await;
    others(&mut log).await;
    ends(&mut log, &base, &overlay, &copy).await;
    log.lines
}

async fn records<D: Door>(log: &mut Log<'_, D>) -> (String, String) {
    let door = log.door;
    let base = Make {
        name: "base",
        format: "qcow2",
        size: Some(MIB),
        ..Make::default()
    };
    let id = log.note("create", door.create(&base).await);
    let refused = [
        Make {
            size: Some(2 * MIB),
            ..base.clone()
        },
        Make {
            name: "a/b",
            ..base.clone()
        },
        Make {
            name: "",
            ..base.clone()
        },
        Make {
            name: "x",
            format: "iso9660",
            ..base.clone()
        },
        Make {
            name: "x",
            size: None,
            ..base.clone()
        },
        Make {
            name: "x",
            size: Some(u64::MAX),
            ..base.clone()
        },
        Make {
            name: "x",
            options: &[("colour", "red")],
            ..base.clone()
        },
        Make {
            name: "x",
            options: &[("cluster_size", "3")],
            ..base.clone()
        },
        Make {
            name: "x",
            backing: Some(UNKNOWN),
            ..base.clone()
        },
        Make {
            name: "x",
            format: "raw",
            size: None,
            backing: Some(&id),
            ..base.clone()
        },
    ];
    for make in refused {
        log.note(&format!("create {make:?}"), door.create(&make).await);
    }
    let keyed = Make {
        name: "keyed",
        key: Some("k1"),
        ..base.clone()
    };
    let first = log.note("keyed", door.create(&keyed).await);
    log.note("keyed again", door.create(&keyed).await);
    log.note(
        "key of another",
        door.create(&Make {
            name: "other",
            ..keyed.clone()
        })
        .await,
    );
    log.note(
        "no key",
        door.create(&Make {
            key: Some("a b"),
            ..keyed
        })
        .await,
    );
    log.note("delete", door.delete(&first).await);
    let overlay = Make {
        name: "overlay",
        size: None,
        backing: Some(&id),
        ..base.clone()
    };
    let overlay = log.note("overlay", door.create(&overlay).await);
    log.note("base in use", door.delete(&id).await);
    (id, overlay)
}

async fn looks<D: Door>(log: &mut Log<'_, D>, base: &str, overlay: &str) {
    let door = log.door;
    log.note(
        "label",
        door.update(overlay, None, Some(("team", "web")), Some(true)).await,
    );
    log.note("name of another", door.update(overlay, Some("base"), None, None).await);
    log.note("protected", door.delete(overlay).await);
    log.note("unprotect", door.update(overlay, None, None, Some(false)).await);
    log.note("by label", door.images(Some("team=web"), 10).await);
    log.note("by no label", door.images(Some("team=db"), 10).await);
    log.note("all", door.images(None, 10).await);
    for id in [base, overlay, UNKNOWN, "7", "../etc/passwd"] {
        log.note("image", door.image(id).await);
        log.note("info", door.info(id).await);
        log.note("chain", door.chain(id).await);
        log.note("map", door.map(id, 0).await);
        log.note("measure", door.measure(id, "raw").await);
        log.note("data", door.data(id, 0, 512).await);
    }
    log.note("map behind the end", door.map(base, MIB + 1).await);
    log.note("data behind the end", door.data(base, MIB, 1).await);
    log.note("measure as nothing", door.measure(base, "tar").await);
}

async fn verbs<D: Door>(log: &mut Log<'_, D>, base: &str, overlay: &str) -> String {
    let door = log.door;
    let convert = |name, format, snapshot| Verb::Convert { name, format, snapshot };
    let job = door.run(overlay, convert("copy", "qcow2", None)).await;
    let copy = job.as_ref().unwrap()["result"]["image_id"].as_str().unwrap().to_owned();
    log.note("convert", job);
    let tries = [
        (overlay, convert("copy", "qcow2", None)),
        (overlay, convert("x y", "qcow2", None)),
        (overlay, convert("x", "cdrom", None)),
        (overlay, convert("x", "qcow2", Some("none"))),
        (overlay, Verb::Rebase { backing: Some(UNKNOWN) }),
        (overlay, Verb::Rebase { backing: Some(overlay) }),
        (base, Verb::Rebase { backing: Some(overlay) }),
        (overlay, Verb::Rebase { backing: Some(&copy) }),
        (
            base,
            Verb::Resize {
                size: 2 * MIB,
                shrink: false,
            },
        ),
        (
            overlay,
            Verb::Resize {
                size: MIB / 2,
                shrink: false,
            },
        ),
        (
            overlay,
            Verb::Resize {
                size: 2 * MIB,
                shrink: false,
            },
        ),
        (
            overlay,
            Verb::Resize {
                size: u64::MAX,
                shrink: false,
            },
        ),
        (base, Verb::Commit),
        (overlay, Verb::Check),
        (overlay, Verb::Compare { other: &copy }),
        (overlay, Verb::Compare { other: UNKNOWN }),
        (base, Verb::Flatten),
        (overlay, Verb::Flatten),
        (overlay, Verb::CompressZlib),
        (UNKNOWN, Verb::Check),
    ];
    for (id, verb) in tries {
        log.note(&format!("{verb:?}"), door.run(id, verb).await);
    }
    log.note("chain", door.chain(overlay).await);
    copy
}

async fn snapshots<D: Door>(log: &mut Log<'_, D>, copy: &str) {
    let door = log.door;
    log.note("snapshot", door.snapshot(copy, "one").await);
    log.note("snapshot again", door.snapshot(copy, "one").await);
    log.note("snapshot without a name", door.snapshot(copy, "").await);
    log.note("snapshots", door.snapshots(copy).await);
    log.note("apply", door.apply(copy, "one").await);
    log.note("apply none", door.apply(copy, "two").await);
    log.note("drop", door.drop_snapshot(copy, "one").await);
    log.note("drop again", door.drop_snapshot(copy, "one").await);
    log.note("snapshots of nothing", door.snapshots(UNKNOWN).await);
}

async fn others<D: Door>(log: &mut Log<'_, D>) {
    let door = log.door;
    log.note("job", door.job(UNKNOWN).await);
    log.note("cancel", door.cancel(UNKNOWN).await);
    let secret = log.note("secret", door.secret("key", "value").await);
    log.note("secret again", door.secret("key", "value").await);
    log.note("secret of nothing", door.secret("empty", "").await);
    log.note("drop secret", door.drop_secret(&secret).await);
    log.note("drop secret again", door.drop_secret(&secret).await);
    log.note("pool", door.pool("default").await);
    log.note("no pool", door.pool("other").await);
    log.note("token", door.token("ci", 30).await);
    log.note("token again", door.token("ci", 30).await);
    log.note("token of no days", door.token("cd", 0).await);
    log.note(
        "webhook",
        door.webhook("http://hooks.example/", "0123456789abcdef").await,
    );
    log.note(
        "webhook of a file",
        door.webhook("file:///etc/passwd", "0123456789abcdef").await,
    );
    log.note(
        "webhook with a short secret",
        door.webhook("http://hooks.example/", "short").await,
    );
    log.note(
        "import",
        door.import_url("fetched", "http://169.254.169.254/disk").await,
    );
    log.note(
        "import of a file",
        door.import_url("fetched-2", "file:///etc/passwd").await,
    );
}

async fn ends<D: Door>(log: &mut Log<'_, D>, base: &str, overlay: &str, copy: &str) {
    let door = log.door;
    for id in [overlay, copy, base, base] {
        log.note("delete", door.delete(id).await);
    }
    log.note("all", door.images(None, 10).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_transports_answer_alike() {
    let (one, other) = (Server::start().await, Server::start().await);
    let http = scenario(&OverHttp(&one)).await;
    let grpc = scenario(&OverGrpc::connect(&other).await).await;
    assert_eq!(http.len(), grpc.len());
    for (number, (http, grpc)) in http.iter().zip(&grpc).enumerate() {
        assert_eq!(http.1, grpc.1, "step {number}: {}", http.0);
    }
    let refusals = http.iter().filter(|(_, outcome)| outcome.is_err()).count();
    assert!(
        http.len() > 90 && refusals > 40,
        "{} steps, {refusals} refusals",
        http.len()
    );
}
