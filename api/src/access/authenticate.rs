//! Who calls, and whether the table lets them.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use sha2::{Digest, Sha256};
use vdisk_service::ServiceError;
use vdisk_service::model::{ANONYMOUS, Role};

use super::audit::{self, Trail};
use super::roles::{Asked, Need};
use super::{Policy, refusal};
use crate::errors::TransportCode;
use crate::grpc;
use crate::http::problem::Problem;
use crate::state::App;

/// Whether calls without a token are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// They are, as if by an admin. A token that comes all the same counts with its own role.
    #[default]
    Open,
    /// They are refused.
    Required,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Name of the token, name of the certificate, or `anonymous`.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

/// What names the certificate that a client's connection was opened with: the start of its SHA-256, as
/// `openssl x509 -fingerprint -sha256` shows it.
#[derive(Clone, Debug)]
pub struct ClientCertificate(pub String);

impl ClientCertificate {
    /// The name of a certificate.
    pub fn of(der: &[u8]) -> Self {
        let digest = Sha256::digest(der);
        let digits: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self(format!("certificate:{digits}"))
    }
}

/// Lets a request pass to its handler, or answers 401 or 403; notes what changes something, and what was refused.
pub async fn authenticate(State(app): State<App>, request: Request, next: Next) -> Response {
    let asked = Asked::of(&request);
    let Some(least) = least_role(asked.need, &app.policy) else {
        return next.run(request).await;
    };
    let mut trail = Trail::of(&request, asked);
    let (is_call, headers) = (grpc::is_call(&request), request.headers().clone());
    let caller = match identify(&app, &headers, request.extensions().get().cloned()).await {
        Ok(caller) => caller,
        Err(error) => return failed(is_call, error),
    };
    let Some(caller) = caller else {
        audit::note_stranger(&app, trail);
        return unauthenticated(is_call);
    };
    trail.entry.caller.clone_from(&caller.name);
    trail.entry.role = Some(caller.role);
    if caller.role < least {
        let refused = forbidden(is_call, least, caller.role);
        return audit::when_answered(&app, trail, refused);
    }
    let response = next.run(request).await;
    if least == Role::Reader {
        return response;
    }
    audit::when_answered(&app, trail, response)
}

fn least_role(need: Need, policy: &Policy) -> Option<Role> {
    match need {
        Need::Open => None,
        Need::Metrics => (!policy.open_metrics).then_some(Role::Reader),
        Need::Role(role) => Some(role),
    }
}

/// Who calls; `None` for a token that does not count, or for nobody where somebody is asked for.
async fn identify(
    app: &App,
    headers: &HeaderMap,
    certificate: Option<ClientCertificate>,
) -> Result<Option<Caller>, ServiceError> {
    let mut credentials = headers.get_all(header::AUTHORIZATION).iter();
    match (credentials.next(), credentials.next()) {
        (Some(value), None) => {
            let Some(text) = bearer(value) else { return Ok(None) };
            let token = app.service.authenticate(text).await?;
            Ok(token.map(|token| Caller {
                name: token.name,
                role: token.role,
            }))
        }
        (Some(_), Some(_)) => Ok(None),
        (None, _) => Ok(without_token(&app.policy, certificate.as_ref())),
    }
}

fn without_token(policy: &Policy, certificate: Option<&ClientCertificate>) -> Option<Caller> {
    if let (Some(role), Some(ClientCertificate(subject))) = (policy.certificate_role, certificate) {
        return Some(Caller {
            name: subject.clone(),
            role,
        });
    }
    (policy.authentication == Authentication::Open).then(|| Caller {
        name: ANONYMOUS.to_owned(),
        role: Role::Admin,
    })
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750 section 2.1).
fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn unauthenticated(is_call: bool) -> Response {
    let detail = "this takes a token that counts, as 'Authorization: Bearer TOKEN'";
    let mut response = refusal(is_call, TransportCode::Unauthenticated, detail);
    let challenge = HeaderValue::from_static("Bearer realm=\"vdiskd\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

fn forbidden(is_call: bool, least: Role, role: Role) -> Response {
    let detail = format!("this takes the role '{least}'; the caller has the role '{role}'");
    refusal(is_call, TransportCode::Forbidden, detail)
}

fn failed(is_call: bool, error: ServiceError) -> Response {
    if is_call {
        return grpc::failure(error);
    }
    Problem::from(error).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bearer_scheme_is_read() {
        let read = |text: &'static str| bearer(&HeaderValue::from_static(text)).map(str::to_owned);
        assert_eq!(read("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(read("bearer  abc").as_deref(), Some("abc"));
        for other in ["abc", "Basic YTpi", "Bearer", "Bearerabc"] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn a_certificate_counts_only_where_it_was_given_a_role() {
        let certificate = ClientCertificate("certificate:00".to_owned());
        let closed = Policy {
            authentication: Authentication::Required,
            ..Policy::default()
        };
        assert_eq!(without_token(&closed, Some(&certificate)), None);
        let trusting = Policy {
            certificate_role: Some(Role::Operator),
            ..closed
        };
        let caller = without_token(&trusting, Some(&certificate)).unwrap();
        assert_eq!((caller.name.as_str(), caller.role), ("certificate:00", Role::Operator));
        assert_eq!(without_token(&trusting, None), None);
    }
}
