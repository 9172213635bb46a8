//! Guests that write to a base while one of our jobs is about to change it: overlays never take that for what they were made on.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use common::{Lab, MIB, NONE, OVERLAY, code, json, new_image};
use serde_json::{Value, json};
use vdisk_service::model::{ImageId, Job};
use vdisk_service::{ErrorCode, Result, Service};

/// A guest that has an image open for writing.
struct Guest {
    process: Child,
    says: BufReader<ChildStdout>,
    told: ChildStdin,
}

impl Guest {
    /// `None` where the peer's tools are not installed.
    fn on(lab: &Lab, image: ImageId) -> Option<Self> {
        let mut process = common::tool("qemu-io")?
            .args(["-f", OVERLAY])
            .arg(lab.pool().join(image.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = BufReader::new(process.stdout.take().unwrap());
        let told = process.stdin.take().unwrap();
        let mut guest = Self { process, says, told };
        // An answer means that the image is open and locked.
        guest.tell("length", "MiB");
        Some(guest)
    }

    fn tell(&mut self, command: &str, answer: &str) {
        writeln!(self.told, "{command}").unwrap();
        let mut line = String::new();
        while !line.contains(answer) {
            line.clear();
            assert!(
                self.says.read_line(&mut line).unwrap() > 0,
                "{command} was not answered"
            );
        }
    }

    /// Writes other bytes and goes.
    fn overwrite(mut self) {
        self.tell("write -P 0xBB 0 1M", "wrote");
        drop(self.told);
        assert!(self.process.wait().unwrap().success());
    }
}

/// A base of 1 MiB with an overlay.
async fn base(lab: &Lab, name: &str) -> (ImageId, ImageId) {
    let base = lab.create(name, OVERLAY, MIB).await.id;
    assert!(lab.qemu_io(&base.to_string(), OVERLAY, "write -P 0xAA 0 1M"));
    (base, lab.overlay(&format!("{name}-overlay"), base).await.id)
}

/// Work in place that leaves overlays what they are.
const KINDS: [&str; 2] = ["check", "compress"];

async fn begin(service: &Service, kind: &str, image: ImageId, request: Value) -> Job {
    let job = match kind {
        "check" => service.check_image(image, json(request), &NONE).await,
        _ => service.compress_image(image, json(request), &NONE).await,
    };
    job.unwrap()
}

fn request(kind: &str) -> Value {
    match kind {
        "check" => json!({"repair": "all"}),
        _ => json!({"algorithm": "zlib"}),
    }
}

/// Neither the overlay shows what the guest wrote, nor does anybody get another one.
async fn assert_noticed(lab: &Lab, base: ImageId, overlay: ImageId, what: &str) {
    assert_eq!(
        code(lab.service.read_data(overlay, None).await),
        ErrorCode::BaseChanged,
        "{what}"
    );
    let second = new_image(&format!("second-{base}"), OVERLAY, None, Some(base));
    let second = lab.service.create_image(second, &NONE).await;
    assert_eq!(code(second), ErrorCode::BaseChanged, "{what}");
}

/// Waits until a job has said that it does this.
async fn until_it_says(lab: &Lab, job: &Job, text: &str) {
    for _ in 0..20_000 {
        let steps = lab.service.job(job.id).await.unwrap().steps;
        if steps.iter().any(|step| step.text.contains(text)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the job never said '{text}'");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_writes_after_a_job_that_could_not_have_the_file() {
    let lab = Lab::new().await;
    let mut all = Vec::new();
    for kind in KINDS {
        let (base, overlay) = base(&lab, kind).await;
        let Some(guest) = Guest::on(&lab, base) else { return };
        let job = begin(&lab.service, kind, base, request(kind)).await;
        all.push((kind, base, overlay, guest, job));
    }
    for (kind, base, overlay, guest, job) in all {
        assert_eq!(lab.fail(job).await, ErrorCode::ImageBusy, "{kind}");
        guest.overwrite();
        assert_noticed(&lab, base, overlay, kind).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_writes_while_a_job_waits_for_the_file() {
    let lab = Lab::new().await;
    for kind in KINDS {
        let (base, overlay) = base(&lab, kind).await;
        let Some(guest) = Guest::on(&lab, base) else { return };
        let job = begin(&lab.service, kind, base, request(kind)).await;
        if kind == "check" {
            until_it_says(&lab, &job, "checking and repairing").await;
        }
        lab.until_running(&job).await;
        guest.overwrite();
        assert_eq!(lab.fail(job).await, ErrorCode::BaseChanged, "{kind}");
        assert_noticed(&lab, base, overlay, kind).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_writes_while_the_service_is_down_and_a_job_is_open() {
    let lab = Lab::new().await;
    let (base, overlay) = base(&lab, "base").await;
    let job = begin(
        &lab.service,
        "compress",
        base,
        json!({"algorithm": "zlib", "rate_limit": 1}),
    )
    .await;
    until_it_says(&lab, &job, "compressing").await;
    lab.service.shutdown(Duration::ZERO).await;
    let Lab { dir, service } = lab;
    drop(service);
    let file = dir.path().join("pools/default").join(base.to_string());
    let mut guest = common::tool("qemu-io").unwrap();
    let ran = guest
        .args(["-f", OVERLAY, "-c", "write -P 0xBB 0 1M"])
        .arg(file)
        .output();
    assert!(ran.unwrap().status.success());
    let service = Service::open(common::quick_config(dir.path())).await.unwrap();
    let lab = Lab { dir, service };
    assert_eq!(lab.fail(job).await, ErrorCode::BaseChanged);
    assert_noticed(&lab, base, overlay, "compress").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_finds_nothing_to_repair_says_nothing_of_what_a_guest_wrote() -> Result<()> {
    let lab = Lab::new().await;
    let (base, overlay) = base(&lab, "base").await;
    let job = begin(&lab.service, "check", base, request("check")).await;
    lab.succeed(job).await;
    assert!(lab.data(overlay).await == [0xAA; 1 << 20]);
    let Some(guest) = Guest::on(&lab, base) else {
        return Ok(());
    };
    guest.overwrite();
    assert_noticed(&lab, base, overlay, "after it").await;
    let accept = json(json!({"backing": base, "mode": "unsafe"}));
    let job = lab.service.rebase_image(overlay, accept, &NONE).await?;
    lab.succeed(job).await;
    assert!(lab.data(overlay).await == [0xBB; 1 << 20]);
    Ok(())
}
