//! The pages: static files inside the program, and the interactive reference. Nothing comes from another host.

use axum::Router;
use axum::extract::State;
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderName, HeaderValue, header};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::App;
use crate::access::{Authentication, Policy};

/// What the page may load and call: this service alone. Its rows set a property of their style, which scripts may.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// What holds for the interactive reference, whose scripts are not ours: no page of another site may show it in a frame.
const REFERENCE_POLICY: &str = "script-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// `/`, its parts, and `/docs`.
pub fn router() -> Router<App> {
    let reference = Router::from(SwaggerUi::new("/docs").config(Config::from("/openapi.json")));
    Router::new()
        .route("/", get(page))
        .route("/ui/app.js", get(|| file(SCRIPT, include_str!("app.js"))))
        .route("/ui/events.js", get(|| file(SCRIPT, include_str!("events.js"))))
        .route("/ui/rows.js", get(|| file(SCRIPT, include_str!("rows.js"))))
        .route("/ui/session.js", get(|| file(SCRIPT, include_str!("session.js"))))
        .route(
            "/ui/style.css",
            get(|| file("text/css; charset=utf-8", include_str!("style.css"))),
        )
        .route("/ui/icon.svg", get(|| file("image/svg+xml", include_str!("icon.svg"))))
        .merge(reference.layer(map_response(guarded)))
}

async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(REFERENCE_POLICY),
    );
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Says whether to ask for a token first: a request that is refused shows as an error in the browser.
async fn page(State(app): State<App>) -> Response {
    let access = if needs_token(&app.policy) { "token" } else { "open" };
    let text = include_str!("index.html").replace("{{access}}", access);
    file("text/html; charset=utf-8", text).await
}

fn needs_token(policy: &Policy) -> bool {
    policy.authentication == Authentication::Required && policy.certificate_role.is_none()
}

async fn file(kind: &'static str, text: impl IntoResponse) -> Response {
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}
