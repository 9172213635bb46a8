use vdisk_service::ServiceError;
use vdisk_service::model::{CreateOptionInfo, FormatInfo, OptionType, Pool, Secret};
use vdisk_service::request::{NewSecret, SecretForm};

use super::value::{known, optional_id, timestamp};
use crate::proto;

impl From<Pool> for proto::Pool {
    fn from(pool: Pool) -> Self {
        Self {
            name: pool.name,
            capacity: pool.capacity,
            allocated: pool.allocated,
            free: pool.free,
            image_count: pool.image_count,
            default: pool.default,
        }
    }
}

impl From<Secret> for proto::Secret {
    fn from(secret: Secret) -> Self {
        Self {
            id: secret.id.to_string(),
            name: secret.name,
            created_at: timestamp(secret.created_at),
        }
    }
}

impl TryFrom<proto::CreateSecretRequest> for NewSecret {
    type Error = ServiceError;

    fn try_from(request: proto::CreateSecretRequest) -> Result<Self, ServiceError> {
        let format = match known("format", request.format)? {
            proto::SecretForm::Unspecified | proto::SecretForm::Raw => SecretForm::Raw,
            proto::SecretForm::Base64 => SecretForm::Base64,
        };
        Ok(Self {
            name: request.name,
            value: request.value.into(),
            format,
            keyid: optional_id("secret", request.keyid)?,
            iv: request.iv,
        })
    }
}

impl From<FormatInfo> for proto::Format {
    fn from(format: FormatInfo) -> Self {
        Self {
            name: format.name,
            description: format.description,
            capabilities: format.capabilities,
            create_options: format.create_options.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<CreateOptionInfo> for proto::CreateOption {
    fn from(option: CreateOptionInfo) -> Self {
        let kind = match option.value_type {
            OptionType::Text => proto::OptionType::String,
            OptionType::Bool => proto::OptionType::Bool,
            OptionType::Number => proto::OptionType::Number,
            OptionType::Size => proto::OptionType::Size,
            OptionType::Choice => proto::OptionType::Choice,
        };
        Self {
            name: option.name,
            r#type: kind.into(),
            default: option.default,
            choices: option.choices,
            help: option.help,
        }
    }
}
