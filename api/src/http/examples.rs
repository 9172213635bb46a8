//! An example for every schema that is a body. Answers are made from the types themselves, so that they cannot age.

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;
use vdisk_service::Timestamp;
use vdisk_service::model::{
    Amount, AuditEntry, ChainLayer, CreateOptionInfo, Detected, EventKind, Extent, FormatInfo, FoundReference, Image,
    ImageState, Inspection, InspectionLimits, Job, JobKind, JobPlan, JobProgress, JobState, JobStep, Loss, LossKind,
    MapPage, MeasureReport, OptionType, Page, ParsedIn, Pool, Role, Secret, Snapshot, Token, Verdict, Webhook,
};

use super::image_layout::Chain;
use super::reply::{
    AuditList, FormatList, ImageBody, ImageList, JobList, PoolList, SecretList, SnapshotList, TokenList, WebhookList,
};

/// What a watcher sees of a short job.
pub const EVENT_STREAM: &str = "id: 41\nevent: job.state\ndata: {\"seq\":41,\"type\":\"job.state\",\"job_id\":\
    \"01890a5d-ac96-774b-bcce-b302099a8059\",\"at\":\"2026-05-04T12:00:01.250Z\",\"data\":{\"state\":\"running\"}}\n\n";

const IMAGE: Uuid = Uuid::from_u128(0x01890a5d_ac96_774b_bcce_b302099a8057);
const BASE: Uuid = Uuid::from_u128(0x01890a5d_ac96_774b_bcce_b302099a8056);
const COPY: Uuid = Uuid::from_u128(0x01890a5d_ac96_774b_bcce_b302099a8058);
const JOB: Uuid = Uuid::from_u128(0x01890a5d_ac96_774b_bcce_b302099a8059);
const SECRET: Uuid = Uuid::from_u128(0x01890a5d_ac96_774b_bcce_b302099a805a);
const TOKEN: Uuid = Uuid::from_u128(0x01890a5d_ac96_774b_bcce_b302099a805b);
const ENTRY: Uuid = Uuid::from_u128(0x01890a5d_ac96_774b_bcce_b302099a805c);
const HOOK: Uuid = Uuid::from_u128(0x01890a5d_ac96_774b_bcce_b302099a805e);
const THEN: Timestamp = Timestamp(1_777_896_000_000);
const LATER: Timestamp = Timestamp(1_777_896_001_250);
const GIB: u64 = 1 << 30;

/// The example of a schema.
pub fn of(schema: &str) -> Option<Value> {
    request(schema).or_else(|| answer(schema)).or_else(|| list(schema))
}

fn request(schema: &str) -> Option<Value> {
    Some(match schema {
        "CreateImage" => json!({"name": "web-1", "format": "qcow2", "backing": BASE, "labels": {"team": "web"}}),
        "ImportImage" => json!({"name": "debian-13", "format": "qcow2", "source": {"upload": true}}),
        "UpdateImage" => json!({"labels": {"team": "web"}, "protected": true}),
        "ConvertRequest" => json!({"name": "web-1-export", "format": "qcow2", "compress": true,
            "options": {"compression_type": "zstd"}}),
        "CompressRequest" => json!({"algorithm": "zstd", "level": 3}),
        "RebaseRequest" => json!({"backing": BASE, "mode": "safe"}),
        "CommitRequest" => json!({"drop": false}),
        "CheckRequest" => json!({"repair": "leaks"}),
        "ResizeRequest" => json!({"virtual_size": 20 * GIB}),
        "CompareRequest" => json!({"other": COPY, "strict": false}),
        "MeasureRequest" => json!({"format": "qcow2", "options": {"cluster_size": "64k"}}),
        "FlattenRequest" => json!({"rate_limit": 200_000_000}),
        "EncryptRequest" => json!({"name": "web-1-closed", "format": "qcow2", "secret": SECRET, "verify": true}),
        "DecryptRequest" => json!({"name": "web-1-open", "verify": true}),
        "RekeyRequest" => json!({"change": "change", "new_secret": SECRET}),
        "RotateMasterKeyRequest" => json!({}),
        "ScanRequest" => json!({"dry_run": true}),
        "UpdateJob" => json!({"rate_limit": 100_000_000, "priority": 5}),
        "NewSecret" => json!({"name": "luks-web", "value": "correct horse battery staple"}),
        "NewToken" => json!({"name": "ci", "role": "operator", "expires_in_days": 90}),
        "NewWebhook" => {
            json!({"url": "https://hooks.example/vdisk", "secret": "4f1d8a0c9b7e6d5f", "events": ["job.state"]})
        }
        "CreateSnapshot" => json!({"name": "before-upgrade"}),
        _ => return None,
    })
}

fn answer(schema: &str) -> Option<Value> {
    match schema {
        "Image" => value(ImageBody::from(image())),
        "Job" => value(job()),
        "JobPlan" => value(plan()),
        "Pool" => value(pool()),
        "Secret" => value(secret()),
        "Token" => value(token()),
        "Webhook" => value(webhook()),
        "CreatedToken" => value(token()).map(|mut made| {
            made["token"] = json!("vdiskd_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789-_AbCdE");
            made
        }),
        "Snapshot" => value(snapshot()),
        "Extent" => value(extent()),
        "MapPage" => value(MapPage {
            extents: vec![extent()],
            next_cursor: None,
        }),
        "Inspection" => value(inspection()),
        "Chain" => value(Chain {
            layers: vec![layer(IMAGE, "web-1", 0), layer(BASE, "debian-13", 1)],
        }),
        "MeasureReport" => value(MeasureReport {
            required: 1_704_329_216,
            fully_allocated: 10_739_318_784,
            bitmaps: None,
        }),
        "UploadProgress" => Some(json!({"received_bytes": 1_048_576})),
        "Health" => Some(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")})),
        "ImageInfo" => Some(
            json!({"virtual-size": 10 * GIB, "filename": "01890a5d-ac96-774b-bcce-b302099a8057",
            "format": "qcow2", "actual-size": 200_704, "cluster-size": 65_536, "dirty-flag": false}),
        ),
        _ => None,
    }
}

fn list(schema: &str) -> Option<Value> {
    match schema {
        "ImageList" => value(ImageList::from(page(image()))),
        "JobList" => value(JobList::from(page(job()))),
        "SecretList" => value(SecretList::from(page(secret()))),
        "TokenList" => value(TokenList::from(page(token()))),
        "AuditList" => value(AuditList::from(page(audit_entry()))),
        "WebhookList" => value(WebhookList::from(vec![webhook()])),
        "PoolList" => value(PoolList::from(vec![pool()])),
        "SnapshotList" => value(SnapshotList::from(vec![snapshot()])),
        "FormatList" => value(FormatList::from(vec![format()])),
        _ => None,
    }
}

fn plan() -> JobPlan {
    JobPlan {
        kind: JobKind::Convert,
        image_ids: vec![IMAGE],
        pool: Some("default".to_owned()),
        read: Some(Amount::exact(1_703_936_000)),
        write: Some(Amount::at_most(1_703_936_000)),
        target_size: Some(Amount::at_most(1_704_329_216)),
        space_needed: Some(Amount::at_most(1_704_329_216)),
        space_free: Some(80 * GIB),
        losses: vec![Loss {
            kind: LossKind::Snapshots,
            image_id: IMAGE,
            detail: "2 internal snapshots".to_owned(),
        }],
    }
}

fn value(example: impl Serialize) -> Option<Value> {
    serde_json::to_value(example).ok()
}

fn page<T>(item: T) -> Page<T> {
    Page {
        items: vec![item],
        next_page_token: None,
    }
}

fn image() -> Image {
    Image {
        id: IMAGE,
        name: "web-1".to_owned(),
        pool: "default".to_owned(),
        format: "qcow2".to_owned(),
        state: ImageState::Ready,
        virtual_size: 10 * GIB,
        allocated_size: 200_704,
        file_size: 196_616,
        backing_id: Some(BASE),
        generation: 1,
        labels: [("team".to_owned(), "web".to_owned())].into(),
        protected: false,
        encrypted: false,
        secrets: Default::default(),
        uploaded_bytes: None,
        problem: None,
        created_at: THEN,
        updated_at: LATER,
    }
}

fn job() -> Job {
    Job {
        id: JOB,
        kind: JobKind::Convert,
        state: JobState::Running,
        image_ids: vec![IMAGE],
        pool: Some("default".to_owned()),
        progress: JobProgress {
            done_bytes: 734_003_200,
            total_bytes: Some(1_702_887_424),
            bytes_per_second: Some(367_001_600),
            eta_seconds: Some(3),
        },
        priority: 0,
        rate_limit: None,
        attempt: 1,
        cancel_requested: false,
        version: 7,
        steps: vec![JobStep {
            at: LATER,
            text: "copying".to_owned(),
        }],
        created_at: THEN,
        started_at: Some(LATER),
        finished_at: None,
        request: json!({"name": "web-1-export", "format": "qcow2", "compress": true}),
        result: None,
        error: None,
    }
}

fn pool() -> Pool {
    Pool {
        name: "default".to_owned(),
        capacity: 500 * GIB,
        allocated: 1_702_887_424,
        free: 310 * GIB,
        image_count: 2,
        default: true,
    }
}

fn secret() -> Secret {
    Secret {
        id: SECRET,
        name: "luks-web".to_owned(),
        created_at: THEN,
    }
}

fn inspection() -> Inspection {
    Inspection {
        verdict: Verdict::Accepted,
        claimed_format: Some("qcow2".to_owned()),
        format: "qcow2".to_owned(),
        detected: vec![Detected {
            format: "qcow2".to_owned(),
            confidence: 100,
        }],
        file_size: 196_616,
        virtual_size: Some(10 * GIB),
        encrypted: false,
        references: vec![FoundReference {
            role: "backing".to_owned(),
            name: BASE.to_string(),
            format: Some("qcow2".to_owned()),
        }],
        features: vec!["compat=1.1".to_owned(), "compression-type=zlib".to_owned()],
        limits: InspectionLimits {
            virtual_size: 1 << 50,
            table_bytes: 128 << 20,
            decompressed_bytes: 64 << 20,
        },
        findings: Vec::new(),
        parsed_in: ParsedIn {
            child: true,
            landlock: true,
            seccomp: true,
        },
    }
}

fn token() -> Token {
    Token {
        id: TOKEN,
        name: "ci".to_owned(),
        role: Role::Operator,
        created_at: THEN,
        expires_at: None,
    }
}

fn webhook() -> Webhook {
    Webhook {
        id: HOOK,
        url: "https://hooks.example/vdisk".to_owned(),
        events: vec![EventKind::JobState],
        delivered: 41,
        failures: 0,
        problem: None,
        created_at: THEN,
    }
}

fn audit_entry() -> AuditEntry {
    AuditEntry {
        id: ENTRY,
        at: LATER,
        caller: "ci".to_owned(),
        role: Some(Role::Operator),
        transport: "http".to_owned(),
        action: "POST /v1/images".to_owned(),
        target: "/v1/images".to_owned(),
        outcome: "201".to_owned(),
        request_id: Some("01890a5d-ac96-774b-bcce-b302099a805d".to_owned()),
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        id: "1".to_owned(),
        name: "before-upgrade".to_owned(),
        created_at: THEN,
        vm_state_size: 0,
        virtual_size: Some(10 * GIB),
    }
}

fn extent() -> Extent {
    Extent {
        start: 0,
        length: 65_536,
        depth: 1,
        present: true,
        zero: false,
        data: true,
        compressed: false,
        offset: Some(327_680),
        filename: Some(BASE.to_string()),
        image_id: Some(BASE),
    }
}

fn layer(id: Uuid, name: &str, depth: u32) -> ChainLayer {
    ChainLayer {
        image_id: Some(id),
        name: name.to_owned(),
        format: "qcow2".to_owned(),
        filename: id.to_string(),
        virtual_size: 10 * GIB,
        depth,
    }
}

fn format() -> FormatInfo {
    FormatInfo {
        name: "qcow2".to_owned(),
        description: "QEMU copy-on-write, versions 2 and 3".to_owned(),
        capabilities: vec!["create".to_owned(), "write".to_owned(), "backing".to_owned()],
        create_options: vec![CreateOptionInfo {
            name: "cluster_size".to_owned(),
            value_type: OptionType::Size,
            default: Some("65536".to_owned()),
            choices: Vec::new(),
            help: "bytes of a cluster, 512 to 2 MiB".to_owned(),
        }],
    }
}

#[cfg(test)]
mod tests {
    use vdisk_service::request::{
        CheckRequest, CommitRequest, CompareRequest, CompressRequest, ConvertRequest, CreateImage, DecryptRequest,
        EncryptRequest, FlattenRequest, ImportImage, MeasureRequest, NewSecret, NewToken, NewWebhook, RebaseRequest,
        RekeyRequest, ResizeRequest, RotateMasterKeyRequest, UpdateImage, UpdateJob,
    };

    use super::*;

    fn reads<T: serde::de::DeserializeOwned>(schema: &str) {
        let example = of(schema).unwrap();
        serde_json::from_value::<T>(example).unwrap_or_else(|error| panic!("{schema}: {error}"));
    }

    #[test]
    fn request_examples_are_requests() {
        reads::<CreateImage>("CreateImage");
        reads::<ImportImage>("ImportImage");
        reads::<UpdateImage>("UpdateImage");
        reads::<ConvertRequest>("ConvertRequest");
        reads::<CompressRequest>("CompressRequest");
        reads::<RebaseRequest>("RebaseRequest");
        reads::<CommitRequest>("CommitRequest");
        reads::<CheckRequest>("CheckRequest");
        reads::<ResizeRequest>("ResizeRequest");
        reads::<CompareRequest>("CompareRequest");
        reads::<MeasureRequest>("MeasureRequest");
        reads::<FlattenRequest>("FlattenRequest");
        reads::<EncryptRequest>("EncryptRequest");
        reads::<DecryptRequest>("DecryptRequest");
        reads::<RekeyRequest>("RekeyRequest");
        reads::<RotateMasterKeyRequest>("RotateMasterKeyRequest");
        reads::<UpdateJob>("UpdateJob");
        reads::<NewSecret>("NewSecret");
        reads::<NewToken>("NewToken");
        reads::<NewWebhook>("NewWebhook");
        reads::<super::super::snapshots::CreateSnapshot>("CreateSnapshot");
    }
}
