//! Secrets that nothing would use: whoever gave them would take the image for encrypted.

use serde_json::{Value, json};
use vdisk_engine::formats;
use vdisk_service::request::JobRequest;
use vdisk_service::{ErrorCode, Result};

use crate::common::{Lab, MIB, code, json, sample};
use crate::{NONE, both_forms, named, secret};

/// Refused for its secrets; gives what is said about them.
fn said<T>(outcome: Result<T>, request: &Value) -> String {
    let refused = outcome.err().unwrap_or_else(|| panic!("{request} was taken"));
    assert_eq!(refused.code, ErrorCode::InvalidArgument, "{request}: {refused}");
    assert_eq!(refused.field.as_deref(), Some("secrets"), "{request}: {refused}");
    refused.public
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_nothing_uses_is_refused_whatever_the_format() {
    let lab = Lab::new().await;
    let key = secret(&lab, "one").await;
    let source = lab
        .upload("source", Some("raw"), &sample(1 << 20, 31))
        .await
        .unwrap()
        .id;
    let names = formats::DRIVERS
        .iter()
        .filter(|driver| driver.capabilities().create)
        .map(|driver| driver.name());
    for format in names {
        for role in ["encrypt.key-secret", "key-secret", "nope"] {
            if format == "luks" && role != "nope" {
                continue; // It is what the image is encrypted with.
            }
            let request = json!({"name": "x", "format": format, "secrets": {role: key}});
            let mut new = request.clone();
            new["virtual_size"] = json!(MIB);
            let service = &lab.service;
            let answers = [
                said(service.create_image(json(new), &NONE).await, &request),
                said(
                    service.convert_image(source, json(request.clone()), &NONE).await,
                    &request,
                ),
                said(
                    service
                        .plan_job(JobRequest::Convert(source, json(request.clone())))
                        .await,
                    &request,
                ),
            ];
            let asks = answers.iter().all(|answer| answer.contains("encrypt.format"));
            let could = matches!(format, "qcow" | "qcow2") && role == "encrypt.key-secret";
            assert_eq!(asks, could, "{format} {role}: {answers:?}");
        }
    }
    assert_eq!(lab.files().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_secrets_that_nothing_uses_is_refused() {
    let lab = Lab::new().await;
    let key = secret(&lab, "one").await;
    for (options, secrets) in [
        (
            json!({"encrypt.format": "luks"}),
            json!({"encrypt.key-secret": key, "more": key}),
        ),
        (
            json!({"encrypt.format": "luks", "encrypt.key-secret": "k"}),
            json!({"k": key, "encrypt.key-secret": key}),
        ),
    ] {
        let request =
            json!({"name": "x", "format": "qcow2", "virtual_size": MIB, "options": options, "secrets": secrets});
        said(lab.service.create_image(json(request.clone()), &NONE).await, &request);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_options_name_encrypt_a_new_image() {
    let lab = Lab::new().await;
    let key = secret(&lab, "one").await;
    for (number, (format, options, name)) in [
        (
            "qcow2",
            json!({"encrypt.format": "luks", "encrypt.iter-time": 10, "encrypt.key-secret": "k"}),
            "k",
        ),
        (
            "qcow2",
            json!({"encrypt.format": "luks", "encrypt.iter-time": 10}),
            "encrypt.key-secret",
        ),
        ("qcow2", json!({"encryption": true}), "encrypt.key-secret"),
        ("qcow", json!({"encrypt.format": "aes"}), "encrypt.key-secret"),
        ("luks", json!({"iter-time": 10}), "encrypt.key-secret"),
        ("luks", json!({"iter-time": 10}), "key-secret"),
    ]
    .into_iter()
    .enumerate()
    {
        let request = json!({"name": format!("new-{number}"), "format": format, "virtual_size": MIB,
            "options": options, "secrets": {name: key}});
        let made = lab.service.create_image(json(request), &NONE).await.unwrap();
        assert!(made.encrypted && made.secrets.values().eq([&key]), "{made:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_for_the_source_is_used_where_the_source_names_none() {
    let lab = Lab::new().await;
    let bytes = sample(1 << 20, 32);
    let key = secret(&lab, "one").await;
    for (id, role) in both_forms(&lab, &bytes, key).await {
        assert_eq!(named(&lab, id, role).await, key);
        let copy = |name: &str, format: &str, secret| json!({"name": format!("{name}-{role}"), "format": format, "secrets": {role: secret}});
        let convert = async |request: &Value| lab.service.convert_image(id, json(request.clone()), &NONE).await;
        // The image's own is for the image where the target takes none; it may be meant for one that does.
        let other = secret(&lab, &format!("other-{role}")).await;
        for request in [copy("other", "raw", other), copy("meant", "qcow2", key)] {
            said(convert(&request).await, &request);
        }
        for name in ["own", "given"] {
            let job = convert(&copy(name, "raw", key)).await.unwrap();
            let plain = lab.succeed(job).await.result_image_id().unwrap();
            assert!(lab.data(plain).await == bytes);
            let none = json(json!({"secrets": {}}));
            lab.service.update_image(id, none).await.unwrap();
        }
        // What a decryption is given beside the image's own is not needed, and must be there all the same.
        let own = json(json!({"secrets": {role: key}}));
        lab.service.update_image(id, own).await.unwrap();
        let request = |secret| json(json!({"name": format!("open-{role}"), "secret": secret}));
        assert_eq!(
            code(lab.service.decrypt_image(id, request(id), &NONE).await),
            ErrorCode::NotFound
        );
        let job = lab.service.decrypt_image(id, request(key), &NONE).await.unwrap();
        lab.succeed(job).await;
    }
}
