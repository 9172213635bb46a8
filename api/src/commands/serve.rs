use std::io::Write;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use vdisk_service::Service;

use super::{Configured, Failure};
use crate::access::Authentication;
use crate::settings::{LogFormat, Settings};
use crate::tls::TlsFiles;
use crate::{App, server, telemetry};

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Options that cannot be used, a data folder or database that cannot be opened, an address that is taken.
pub async fn run(options: Configured) -> Result<(), Failure> {
    let settings = options.settings()?;
    telemetry::start(settings.log_format, &settings.log)?;
    let (listener, app) = open(&settings).await?;
    // Programs that start us on port 0 read the address here.
    writeln!(
        std::io::stdout(),
        "{}",
        listening(settings.log_format, &settings.url(listener.local_addr()?))
    )?;
    server::serve(listener, app, stop_signal()?, settings.grace).await;
    Ok(())
}

/// What is said at the start, in the form of the log: collectors read both.
fn listening(form: LogFormat, url: &str) -> String {
    let message = format!("vdiskd is listening on {url}");
    match form {
        LogFormat::Text => message,
        LogFormat::Json => serde_json::json!({"level": "INFO", "message": message, "url": url}).to_string(),
    }
}

/// Takes the address first: a second start must fail before it touches the data.
pub(super) async fn open(settings: &Settings) -> Result<(TcpListener, App), Failure> {
    if needs_a_token(settings) && surely_has_none(settings) {
        return Err(no_token_yet(settings));
    }
    let tls = settings.tls.as_ref().map(TlsFiles::load).transpose()?;
    let taken = |error| format!("cannot listen on {}: {error}", settings.listen);
    let listener = TcpListener::bind(settings.listen).await.map_err(taken)?;
    let service = Service::open(settings.service.clone()).await?;
    refuse_without_any_token(settings, &service).await?;
    Ok((
        listener,
        App::with_policy(service, settings.policy.clone()).with_tls(tls),
    ))
}

/// A service that would refuse every request is no use, and often a sign that somebody meant something else.
async fn refuse_without_any_token(settings: &Settings, service: &Service) -> Result<(), Failure> {
    if !needs_a_token(settings) || service.has_tokens().await? {
        return Ok(());
    }
    service.shutdown(Duration::ZERO).await;
    Err(no_token_yet(settings))
}

fn needs_a_token(settings: &Settings) -> bool {
    let policy = &settings.policy;
    policy.authentication == Authentication::Required && policy.certificate_role.is_none()
}

/// A data folder of its own that has no database yet has no token: known without touching it.
fn surely_has_none(settings: &Settings) -> bool {
    let service = &settings.service;
    service.database_url.is_none() && !service.data_dir.join("vdiskd.db").exists()
}

fn no_token_yet(settings: &Settings) -> Failure {
    let why = "requests need a token there and there is none yet; make the first one with 'vdiskd token create --name \
               admin --role admin' on the same data folder, or say --allow-unauthenticated";
    format!("refusing to serve on {}: {why}", settings.listen).into()
}

/// Ready at the first SIGTERM or SIGINT.
pub(super) fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
