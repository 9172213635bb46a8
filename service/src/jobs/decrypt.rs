//! Decrypt: a new image that is not encrypted with the content of one that is. It is a conversion.

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;

use super::{Foreseen, Foresight, JobContext, JobRunner, convert, plan, roles};
use crate::error::{Result, ServiceError};
use crate::model::{ImageId, JobKind};
use crate::queue::Done;
use crate::request::{ConvertRequest, DecryptRequest, SecretRefs};
use crate::service::Inner;
use crate::store::Tx;
use crate::store::images::ImageRecord;
use crate::store::jobs::NewJob;

/// Runs decrypt jobs.
pub struct Decrypt;

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, inner: &Inner, id: ImageId, request: DecryptRequest) -> Result<NewJob> {
    let chain = plan::ready_chain(tx, inner, id).await?;
    if !chain.iter().any(|layer| layer.image.encrypted) {
        let public = format!("image {id} is not encrypted, and neither is a base of it; convert it to copy it");
        return Err(ServiceError::invalid("id", public));
    }
    let top = chain.first().ok_or_else(|| ServiceError::not_found("image", id))?;
    let format = match &request.format {
        Some(format) => format.clone(),
        None => plain_format(&top.image.format)?,
    };
    refuse_encryption(&format, &request)?;
    let copy = ConvertRequest {
        name: request.name.clone(),
        pool: request.pool.clone(),
        format,
        options: request.options.clone(),
        compress: request.compress,
        snapshot: request.snapshot.clone(),
        backing: None,
        secrets: source_secret(inner, &chain, &request).await?,
        labels: request.labels.clone(),
        verify: request.verify,
        rate_limit: request.rate_limit,
        priority: request.priority,
    };
    convert::plan_copy(tx, inner, id, copy, (JobKind::Decrypt, &request)).await
}

/// The format of the copy when nothing is said: the same, unless it is the encryption itself.
fn plain_format(format: &str) -> Result<String> {
    let always = roles::key_role(format)?.is_some_and(|role| role.choice.is_none());
    Ok(if always { "raw" } else { format }.to_owned())
}

/// The copy must not be encrypted.
fn refuse_encryption(format: &str, request: &DecryptRequest) -> Result<()> {
    let role = roles::key_role(format).map_err(|error| error.with_field("format"))?;
    if role.is_some_and(|role| role.choice.is_none()) {
        let public = format!("images of format '{format}' are always encrypted");
        return Err(ServiceError::invalid("format", public));
    }
    match request.options.keys().find(|name| name.starts_with("encrypt")) {
        Some(name) => {
            let public = format!("option '{name}' would encrypt the copy; encrypt the image instead");
            Err(ServiceError::invalid("options", public))
        }
        None => Ok(()),
    }
}

/// The secret of the request under the role that it has in the layer that names none of its own. None, where each names its own.
async fn source_secret(inner: &Inner, chain: &[ImageRecord], request: &DecryptRequest) -> Result<SecretRefs> {
    let Some(secret) = request.secret else {
        return Ok(SecretRefs::new());
    };
    roles::require_secrets(inner, &[("secret".to_owned(), secret)].into()).await?;
    let Some(locked) = chain.iter().find(|layer| roles::lacks_key(layer)) else {
        return Ok(SecretRefs::new());
    };
    let role = roles::key_role(&locked.image.format)?
        .ok_or_else(|| ServiceError::invalid("secret", "the image takes no passphrase"))?;
    Ok([(role.option.to_owned(), secret)].into())
}

impl JobRunner for Decrypt {
    fn kind(&self) -> JobKind {
        JobKind::Decrypt
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        convert::run(context, payload).boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        convert::foresee::foresee(foresight, payload).boxed()
    }
}
