//! Bounds hold for every format, whatever its options are and however much of the disk is data.

use serde_json::{Value, json};
use vdisk_engine::formats::{self, FormatDriver};
use vdisk_service::model::{Amount, Bound, Image, ImageId, SecretId};
use vdisk_service::request::JobRequest;

use crate::NONE;
use crate::common::{Lab, MIB, json, sample};

/// No whole number of any format's units.
const SIZE: u64 = 10 * MIB + 1536;

/// What changes the layout of a new image.
const LAYOUTS: &[(&str, &[(&str, &str)])] = &[
    ("raw", &[("preallocation", "falloc")]),
    ("raw", &[("preallocation", "full")]),
    // So small that the refcount table must grow.
    ("qcow2", &[("cluster_size", "512")]),
    ("qcow2", &[("cluster_size", "512"), ("preallocation", "metadata")]),
    ("qcow2", &[("cluster_size", "2M")]),
    ("qcow2", &[("compat", "0.10")]),
    ("qcow2", &[("extended_l2", "on")]),
    ("qcow2", &[("refcount_bits", "64")]),
    ("qcow2", &[("preallocation", "metadata")]),
    ("qcow2", &[("preallocation", "falloc")]),
    ("qcow2", &[("preallocation", "full")]),
    ("qcow2", &[("encrypt.format", "luks"), ("encrypt.iter-time", "10")]),
    ("qcow", &[("encrypt.format", "aes")]),
    ("qed", &[("cluster_size", "4096"), ("table_size", "1")]),
    ("vdi", &[("static", "on")]),
    ("vhdx", &[("subformat", "fixed")]),
    ("vhdx", &[("subformat", "fixed"), ("block_state_zero", "on")]),
    ("vhdx", &[("block_size", "1M"), ("log_size", "2M")]),
    ("vmdk", &[("subformat", "streamOptimized")]),
    ("vmdk", &[("zeroed_grain", "on")]),
    ("vpc", &[("subformat", "fixed")]),
    ("vpc", &[("force_size", "on")]),
    ("parallels", &[("cluster_size", "65536")]),
    ("luks", &[("iter-time", "10"), ("preallocation", "full")]),
];

fn measurable() -> impl Iterator<Item = &'static dyn FormatDriver> {
    let drivers = formats::DRIVERS.iter().copied();
    drivers.filter(|driver| driver.capabilities().create && driver.capabilities().measure)
}

/// Every format that is created and measured as it is by default, and every one of [`LAYOUTS`].
fn targets() -> Vec<(&'static str, Value)> {
    let plain = measurable().map(|driver| (driver.name(), json!({})));
    let others = LAYOUTS.iter().map(|(format, options)| {
        let options = options.iter().map(|(name, value)| (name.to_string(), json!(value)));
        (*format, Value::Object(options.collect()))
    });
    plain.chain(others).collect()
}

/// The request for a copy, with the key that it needs.
fn copy(name: &str, format: &str, options: &Value, key: SecretId) -> Value {
    let mut options = options.clone();
    let role = match format {
        "luks" => Some("key-secret"),
        _ if options["encrypt.format"].is_string() => Some("encrypt.key-secret"),
        _ => None,
    };
    if format == "luks" {
        options["iter-time"] = json!("10");
    }
    let secrets: serde_json::Map<_, _> = role.map(|role| (role.to_owned(), json!(key))).into_iter().collect();
    json!({"name": name, "format": format, "options": options, "secrets": secrets})
}

async fn secret(lab: &Lab) -> SecretId {
    let request = json(json!({"name": "key", "value": "open sesame"}));
    lab.service.create_secret(request, &NONE).await.unwrap().id
}

/// Disks from nothing to all data, with the holes that their files have.
async fn sources(lab: &Lab) -> Vec<(&'static str, ImageId)> {
    let mut scattered = vec![0; SIZE as usize];
    // Blocks that lie across the units of most formats.
    (0..SIZE as usize)
        .step_by(192 << 10)
        .for_each(|at| scattered[at..][..1024].fill(b'x'));
    let full: Vec<u8> = sample(2 * SIZE as usize, 5).into_iter().map(|byte| byte | 16).collect();
    let full = &full[..SIZE as usize];
    let mut made = vec![("empty", lab.create("empty", "raw", SIZE).await.id)];
    for (name, bytes) in [
        ("scattered", &*scattered),
        ("sparse", &*sample(SIZE as usize, 3)),
        ("full", full),
    ] {
        let uploaded = lab
            .upload(&format!("{name}-sent"), Some("raw"), bytes)
            .await
            .unwrap()
            .id;
        let request = json(json!({"name": name, "format": "raw"}));
        let job = lab.service.convert_image(uploaded, request, &NONE).await.unwrap();
        made.push((name, lab.succeed(job).await.result_image_id().unwrap()));
        lab.service.delete_image(uploaded).await.unwrap();
    }
    made
}

/// What is wrong with what was foreseen.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn note(&mut self, what: &str, request: &Value, foreseen: Option<Amount>, found: u64) {
        let holds = foreseen.is_some_and(|amount| match amount.bound {
            Bound::Exact => found == amount.bytes,
            Bound::AtMost => found <= amount.bytes,
        });
        if !holds {
            self.0.push(format!("{request}: {what} {found}, foreseen {foreseen:?}"));
        }
    }

    fn assert_nothing(&self) {
        assert!(self.0.is_empty(), "{}", self.0.join("\n"));
    }
}

/// The image that a conversion makes.
async fn converted(lab: &Lab, source: ImageId, request: Value, wrong: &mut Wrong) -> Image {
    let dry = JobRequest::Convert(source, json(request.clone()));
    let plan = lab.service.plan_job(dry).await.unwrap();
    let job = lab
        .service
        .convert_image(source, json(request.clone()), &NONE)
        .await
        .unwrap();
    let made = lab.succeed(job).await.result_image_id().unwrap();
    let made = lab.service.image(made).await.unwrap();
    wrong.note("length", &request, plan.target_size, made.file_size);
    wrong.note("space", &request, plan.space_needed, made.allocated_size);
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_never_larger_than_foreseen() {
    let lab = Lab::new().await;
    let (key, mut wrong) = (secret(&lab).await, Wrong::default());
    for (name, source) in sources(&lab).await {
        for (number, (format, options)) in targets().into_iter().enumerate() {
            let request = copy(&format!("{name}-{number}"), format, &options, key);
            let made = converted(&lab, source, request, &mut wrong).await;
            lab.service.delete_image(made.id).await.unwrap();
        }
    }
    wrong.assert_nothing();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_to_be_needed_is_near_what_is_taken() {
    let (lab, mut wrong) = (Lab::new().await, Wrong::default());
    for (name, source) in sources(&lab).await {
        for (format, options) in [
            ("raw", json!({})),
            ("qcow2", json!({"cluster_size": "4096"})),
            ("vpc", json!({"subformat": "fixed"})),
        ] {
            let request = json!({"name": format!("{name}-{format}"), "format": format, "options": options});
            let dry = JobRequest::Convert(source, json(request.clone()));
            let plan = lab.service.plan_job(dry).await.unwrap();
            let taken = converted(&lab, source, request, &mut wrong).await.allocated_size;
            let needed = plan.space_needed.unwrap().bytes;
            assert!(
                needed <= taken + taken / 4 + MIB / 8,
                "{name} {format}: {needed} for {taken}"
            );
        }
    }
    wrong.assert_nothing();
}

/// The image after a resize.
async fn resized(lab: &Lab, image: &Image, size: u64, wrong: &mut Wrong) -> Image {
    let request = json!({"virtual_size": size, "shrink": size < image.virtual_size});
    let dry = JobRequest::Resize(image.id, json(request.clone()));
    let plan = lab.service.plan_job(dry).await.unwrap();
    let job = lab.service.resize_image(image.id, json(request), &NONE).await.unwrap();
    lab.succeed(job).await;
    let after = lab.service.image(image.id).await.unwrap();
    let what = json!([image.name, image.format, image.virtual_size, size]);
    wrong.note("length", &what, plan.target_size, after.file_size);
    // A smaller disk may give space back.
    let needed = plan.space_needed.map(|needed| Amount::at_most(needed.bytes));
    wrong.note(
        "space",
        &what,
        needed,
        after.allocated_size.saturating_sub(image.allocated_size),
    );
    after
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resized_image_is_never_larger_than_foreseen() {
    let lab = Lab::new().await;
    let (key, mut wrong) = (secret(&lab).await, Wrong::default());
    for (name, source) in sources(&lab)
        .await
        .into_iter()
        .filter(|(name, _)| ["scattered", "full"].contains(name))
    {
        for (number, (format, options)) in targets().into_iter().enumerate() {
            let can = formats::by_name(format).unwrap().capabilities();
            if !can.grow || options["subformat"] == "streamOptimized" {
                continue;
            }
            let request = copy(&format!("{name}-{number}"), format, &options, key);
            let mut image = converted(&lab, source, request, &mut wrong).await;
            let sizes: &[u64] = match can.shrink {
                true => &[24 * MIB, 7 * MIB, 3 * MIB + 512, 40 * MIB],
                false => &[24 * MIB, 40 * MIB],
            };
            for size in sizes {
                image = resized(&lab, &image, *size, &mut wrong).await;
            }
            lab.service.delete_image(image.id).await.unwrap();
        }
    }
    wrong.assert_nothing();
}
