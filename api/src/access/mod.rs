//! Who may ask for what: what stands between the port and the handlers of both transports.

pub mod audit;
pub mod authenticate;
pub mod greeting;
pub mod hosts;
pub mod limits;
pub mod roles;
pub mod untaken;

use axum::response::{IntoResponse, Response};

pub use authenticate::Authentication;
pub use hosts::Hosts;
use vdisk_service::model::Role;

use crate::errors::TransportCode;
use crate::grpc;
use crate::http::problem::Problem;

/// What the operator decided about access.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Names under which the service may be called.
    pub hosts: Hosts,
    /// Whether calls without a token are served.
    pub authentication: Authentication,
    /// The role of clients with a certificate that the client CA signed; without, they need a token like all others.
    pub certificate_role: Option<Role>,
    /// Whether `/metrics` is for everybody.
    pub open_metrics: bool,
}

/// A refusal in the words of the transport that the request came by.
pub fn refusal(is_call: bool, code: TransportCode, detail: impl Into<String>) -> Response {
    if is_call {
        return grpc::refusal(code, &detail.into());
    }
    Problem::transport(code, detail).into_response()
}
