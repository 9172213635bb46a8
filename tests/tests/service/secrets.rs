//! A passphrase goes into the program once, and is found nowhere afterwards: not in what it says, stores or shows, whatever is done
//! with it and however that ends.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use vdisk_api::proto;
use vdisk_api::proto::image_service_client::ImageServiceClient;
use vdisk_api::proto::secret_service_client::SecretServiceClient;

use crate::vdiskd::{folder, program};

const CANARY: &str = "canary-1b7e-passphrase-of-the-first-key";
const SECOND: &str = "canary-94c2-passphrase-of-the-second-key";
/// 32 bytes, in base64 as the variable has them.
const MASTER: &str = "Y2FuYXJ5LTVkMGYtbWFzdGVyLWtleS1vbGQtMzJieXQ=";
const NEW_MASTER: &str = "Y2FuYXJ5LWE4ZTMtbWFzdGVyLWtleS1uZXctMzJieXQ=";

/// The program with its log in a file, and a client of it.
struct Watched {
    child: Child,
    url: String,
    client: reqwest::Client,
    /// Everything that it answered.
    answers: String,
}

impl Watched {
    async fn start(dir: &Path) -> Self {
        let said = dir.join("stdout");
        let child = Command::new(program())
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "trace", "--data-dir"])
            .arg(dir.join("data"))
            .env("VDISKD_MASTER_KEY", MASTER)
            .env("VDISKD_NEW_MASTER_KEY", NEW_MASTER)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(File::create(&said).unwrap())
            .stderr(File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut url = None;
        for _ in 0..600 {
            let text = std::fs::read_to_string(&said).unwrap();
            url = text
                .lines()
                .next()
                .filter(|_| text.ends_with('\n'))
                .map(|line| line.rsplit(' ').next().unwrap_or_default().to_owned());
            if url.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self {
            child,
            url: url.expect("vdiskd started"),
            client: reqwest::Client::new(),
            answers: String::new(),
        }
    }

    async fn ask(&mut self, method: Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let text = request.send().await.unwrap().text().await.unwrap();
        self.answers.push_str(&text);
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    async fn get(&mut self, path: &str) -> Value {
        self.ask(Method::GET, path, None).await
    }

    async fn post(&mut self, path: &str, body: Value) -> Value {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Queues a job and gives it as it ended.
    async fn job(&mut self, path: &str, body: Value) -> Value {
        let queued = self.post(path, body).await;
        let id = queued["id"]
            .as_str()
            .unwrap_or_else(|| panic!("{path}: {queued}"))
            .to_owned();
        self.ended(&id).await
    }

    /// A job as it ended. Key derivation takes its time where other tests run as well.
    async fn ended(&mut self, id: &str) -> Value {
        for _ in 0..20 {
            let job = self.get(&format!("/v1/jobs/{id}?wait=30s")).await;
            if ["succeeded", "failed"].contains(&job["state"].as_str().unwrap()) {
                return job;
            }
        }
        panic!("job {id} does not end");
    }

    async fn succeed(&mut self, path: &str, body: Value) -> Value {
        let job = self.job(path, body).await;
        assert_eq!(job["state"], "succeeded", "{path}: {job}");
        job["result"].clone()
    }

    async fn fail(&mut self, path: &str, body: Value, code: &str) {
        let job = self.job(path, body).await;
        assert_eq!(
            (&job["state"], &job["error"]["code"]),
            (&json!("failed"), &json!(code)),
            "{path}"
        );
    }

    async fn secret(&mut self, name: &str, value: &str) -> String {
        let made = self.post("/v1/secrets", json!({"name": name, "value": value})).await;
        made["id"].as_str().unwrap().to_owned()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Every verb that takes a secret, over both transports, well and badly.
async fn exercise(vdiskd: &mut Watched) {
    let (one, two) = (vdiskd.secret("one", CANARY).await, vdiskd.secret("two", SECOND).await);
    let taken = vdiskd
        .post("/v1/secrets", json!({"name": "one", "value": SECOND}))
        .await;
    assert_eq!(taken["code"], "name_taken");
    vdiskd
        .post(
            "/v1/secrets",
            json!({"name": "bad", "value": CANARY, "format": "base64"}),
        )
        .await;
    vdiskd
        .post(
            "/v1/secrets",
            json!({"name": "bad", "value": CANARY, "unknown": SECOND}),
        )
        .await;
    vdiskd
        .post("/v1/secrets", json!({"name": CANARY.len(), "value": CANARY}))
        .await;
    let disk = json!({"name": "disk", "format": "qcow2", "virtual_size": 1 << 20});
    let disk = text(&vdiskd.post("/v1/images", disk).await["id"]);
    let at = |id: &str, verb: &str| format!("/v1/images/{id}/{verb}");
    let cheap = json!({"iter-time": 10});
    let request = json!({"name": "closed", "secret": one, "options": cheap, "verify": true});
    let closed = text(&vdiskd.succeed(&at(&disk, "encrypt"), request).await["image_id"]);
    let request = json!({"name": "qcow2", "format": "qcow2", "secret": one, "options": {"encrypt.iter-time": 10}});
    let other = text(&vdiskd.succeed(&at(&closed, "encrypt"), request).await["image_id"]);
    vdiskd.succeed(&at(&other, "decrypt"), json!({"name": "open"})).await;
    vdiskd
        .fail(
            &at(&closed, "rekey"),
            json!({"change": "erase", "slot": 0}),
            "invalid_argument",
        )
        .await;
    vdiskd
        .fail(
            &at(&closed, "rekey"),
            json!({"change": "erase", "old_secret": two}),
            "wrong_key",
        )
        .await;
    let add = json!({"change": "add", "new_secret": two, "iterations": 1000});
    vdiskd.succeed(&at(&closed, "rekey"), add).await;
    vdiskd
        .succeed(&at(&closed, "rekey"), json!({"change": "erase", "old_secret": two}))
        .await;
    let change = json!({"change": "change", "new_secret": two, "iterations": 1000});
    vdiskd.succeed(&at(&closed, "rekey"), change).await;
    for (verb, body) in [
        ("convert", json!({"name": "copy", "format": "raw"})),
        ("compare", json!({"other": disk})),
        ("check", json!({})),
        ("resize", json!({"virtual_size": 2 << 20})),
    ] {
        vdiskd.succeed(&at(&closed, verb), body).await;
    }
    let wrong = json!({"secrets": {"key-secret": one}});
    vdiskd
        .ask(Method::PATCH, &format!("/v1/images/{closed}"), Some(wrong))
        .await;
    vdiskd
        .fail(
            &at(&closed, "convert"),
            json!({"name": "no", "format": "raw"}),
            "wrong_key",
        )
        .await;
    for what in ["info", "data", "map", "chain", "inspection"] {
        vdiskd.get(&at(&closed, what)).await;
    }
    over_grpc(vdiskd, &disk).await;
    vdiskd.succeed("/v1/master-key/rotate", json!({})).await;
    for path in [
        "/v1/secrets",
        "/v1/jobs",
        "/v1/images",
        "/v1/audit",
        "/metrics",
        "/v1/formats",
    ] {
        vdiskd.get(path).await;
    }
}

async fn over_grpc(vdiskd: &mut Watched, disk: &str) {
    let channel = tonic::transport::Channel::from_shared(vdiskd.url.clone()).unwrap();
    let channel = channel.connect().await.unwrap();
    let secret = proto::CreateSecretRequest {
        name: "three".to_owned(),
        value: CANARY.into(),
        ..Default::default()
    };
    let mut secrets = SecretServiceClient::new(channel.clone());
    let made = secrets.create_secret(secret.clone()).await.unwrap().into_inner();
    let refused = secrets.create_secret(secret).await.unwrap_err();
    vdiskd.answers.push_str(&format!("{made:?} {refused:?}"));
    let mut images = ImageServiceClient::new(channel);
    let encrypt = proto::EncryptImageRequest {
        id: disk.to_owned(),
        name: "closed-3".to_owned(),
        secret: made.id,
        options: [("iter-time".to_owned(), "10".to_owned())].into(),
        verify: true,
        ..Default::default()
    };
    let job = images.encrypt_image(encrypt).await.unwrap().into_inner();
    let ended = vdiskd.ended(&job.id).await;
    assert_eq!(ended["state"], "succeeded", "{ended}");
    let image = text(&ended["result"]["image_id"]);
    let decrypt = proto::DecryptImageRequest {
        id: image.clone(),
        name: "open-3".to_owned(),
        ..Default::default()
    };
    let rekey = proto::RekeyImageRequest {
        id: image,
        change: proto::KeyChange::Unspecified.into(),
        ..Default::default()
    };
    let refused = images.rekey_image(rekey).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let job = images.decrypt_image(decrypt).await.unwrap().into_inner();
    let ended = vdiskd.ended(&job.id).await;
    assert_eq!(ended["state"], "succeeded", "{ended}");
}

/// What must not be found: the passphrases, and the master keys as text and as bytes.
fn hidden() -> Vec<Vec<u8>> {
    let plain = [
        CANARY,
        SECOND,
        MASTER,
        NEW_MASTER,
        "canary-5d0f-master-key-old-32byt",
        "canary-a8e3-master-key-new-32byt",
    ];
    plain.map(|text| text.as_bytes().to_vec()).into()
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_found_in_anything_that_the_program_says_stores_or_shows() {
    let dir = folder();
    let mut vdiskd = Watched::start(dir.path()).await;
    exercise(&mut vdiskd).await;
    let process = format!("/proc/{}", vdiskd.child.id());
    let arguments = std::fs::read(format!("{process}/cmdline")).unwrap();
    let limits = std::fs::read_to_string(format!("{process}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert!(core.split_whitespace().nth(4) == Some("0"), "{core}");
    // Core dumps are made at SIGABRT, into the working folder unless the system says otherwise.
    let abort = Command::new("kill")
        .args(["-ABRT", &vdiskd.child.id().to_string()])
        .status();
    assert!(abort.unwrap().success());
    let status = vdiskd.child.wait().unwrap();
    assert!(status.signal() == Some(6) && !status.core_dumped(), "{status:?}");
    let log = std::fs::metadata(dir.path().join("log")).unwrap().len();
    assert!(
        log > 10_000,
        "the log has {log} bytes: it was not written at this level"
    );
    for wanted in hidden() {
        let shown = String::from_utf8_lossy(&wanted).into_owned();
        assert!(!holds(&arguments, &wanted), "{shown} in the arguments");
        assert!(!holds(vdiskd.answers.as_bytes(), &wanted), "{shown} in an answer");
        for path in files(dir.path()) {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!holds(&bytes, &wanted), "{shown} in {}", path.display());
        }
    }
}
