//! Tokens from the command line, for the first one: whoever reads the data folder may make tokens anyway.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use uuid::Uuid;
use vdisk_service::model::Role;
use vdisk_service::request::{Call, NewToken, PageRequest};
use vdisk_service::{ErrorCode, Service};

use super::{Configured, Failure};

/// What to do with tokens.
#[derive(Args)]
pub struct Token {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a token and print it; it is shown this once
    Create(Create),
    /// List the tokens: id, name, role, end
    List(Configured),
    /// Make a token count no more
    Revoke(Revoke),
}

#[derive(Args)]
struct Create {
    /// Who or what will hold it
    #[arg(long)]
    name: String,
    /// What its holder may do: reader, operator or admin
    #[arg(long)]
    role: Role,
    /// Days until it stops to count [default: never]
    #[arg(long, value_name = "N")]
    expires_in_days: Option<u32>,
    #[command(flatten)]
    configured: Configured,
}

#[derive(Args)]
struct Revoke {
    /// Id of the token
    id: Uuid,
    #[command(flatten)]
    configured: Configured,
}

/// Opens the data folder of a service that does not run, and does what was asked.
///
/// # Errors
/// A service that runs on the folder; names that are taken; ids that are not there.
pub async fn run(options: Token) -> Result<(), Failure> {
    match options.action {
        Action::Create(create) => {
            let service = open(create.configured).await?;
            let request = NewToken {
                name: create.name,
                role: create.role,
                expires_in_days: create.expires_in_days,
            };
            let made = service.create_token(request, &Call::default()).await;
            close(service).await;
            let (_, text) = made?;
            say(text.as_ref().map_or("", |text| text.reveal()))
        }
        Action::List(configured) => {
            let service = open(configured).await?;
            let listed = list(&service).await;
            close(service).await;
            listed
        }
        Action::Revoke(revoke) => {
            let service = open(revoke.configured).await?;
            let revoked = service.revoke_token(revoke.id).await;
            close(service).await;
            Ok(revoked?)
        }
    }
}

async fn list(service: &Service) -> Result<(), Failure> {
    let mut page = PageRequest::default();
    loop {
        let tokens = service.list_tokens(&page).await?;
        for token in tokens.items {
            let end = token.expires_at.map_or("never".to_owned(), |end| end.to_string());
            say(&format!("{} {} {} {end}", token.id, token.name, token.role))?;
        }
        if tokens.next_page_token.is_none() {
            return Ok(());
        }
        page.page_token = tokens.next_page_token;
    }
}

async fn open(configured: Configured) -> Result<Service, Failure> {
    let mut config = configured.settings()?.service;
    // Looks after tokens alone: jobs wait for the service.
    config.workers = 0;
    Service::open(config).await.map_err(|error| {
        if error.code == ErrorCode::Unavailable {
            return format!(
                "{error}; while the service runs, use POST /v1/tokens with an admin's token instead of this command"
            )
            .into();
        }
        error.into()
    })
}

async fn close(service: Service) {
    service.shutdown(Duration::ZERO).await;
}

fn say(line: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
