//! Encrypt: a new, encrypted image with the content of another. It is a conversion into LUKS, or into a format that holds LUKS.

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;

use super::{Foreseen, Foresight, JobContext, JobRunner, convert, roles};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, JobKind};
use crate::queue::Done;
use crate::request::{ConvertRequest, EncryptRequest, Options};
use crate::service::Inner;
use crate::store::Tx;
use crate::store::jobs::NewJob;

/// Runs encrypt jobs.
pub struct Encrypt;

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, inner: &Inner, id: ImageId, request: EncryptRequest) -> Result<NewJob> {
    let mut options = request.options.clone();
    let role = wants_luks(&request.format, &mut options)?;
    let copy = ConvertRequest {
        name: request.name.clone(),
        pool: request.pool.clone(),
        format: request.format.clone(),
        options,
        compress: false,
        snapshot: request.snapshot.clone(),
        backing: None,
        secrets: [(role.to_owned(), request.secret)].into(),
        labels: request.labels.clone(),
        verify: request.verify,
        rate_limit: request.rate_limit,
        priority: request.priority,
    };
    convert::plan_copy(tx, inner, id, copy, (JobKind::Encrypt, &request)).await
}

/// Makes the options ask for LUKS where encryption is a choice. Gives the role of the image's secret.
fn wants_luks(format: &str, options: &mut Options) -> Result<&'static str> {
    let unsupported = |public: String| ServiceError::new(ErrorCode::Unsupported, public).with_field("format");
    let role = roles::key_role(format).map_err(|error| error.with_field("format"))?;
    let role = role.ok_or_else(|| unsupported(format!("images of format '{format}' cannot be encrypted")))?;
    if options.contains_key(role.option) {
        let public = format!(
            "the passphrase is given by 'secret', not by the option '{}'",
            role.option
        );
        return Err(ServiceError::invalid("options", public));
    }
    let Some(choice) = role.choice else {
        return Ok(role.option);
    };
    if !choice.luks {
        return Err(unsupported(format!(
            "images of format '{format}' cannot hold LUKS; convert the image"
        )));
    }
    if options.get(&choice.option).is_some_and(|chosen| chosen != "luks") {
        let public = format!(
            "encrypted images are made with LUKS: '{}' can be 'luks' alone",
            choice.option
        );
        return Err(ServiceError::invalid("options", public));
    }
    options.insert(choice.option, "luks".to_owned());
    Ok(role.option)
}

impl JobRunner for Encrypt {
    fn kind(&self) -> JobKind {
        JobKind::Encrypt
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        convert::run(context, payload).boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        convert::foresee::foresee(foresight, payload).boxed()
    }
}
