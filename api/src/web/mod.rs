//! The pages: static files inside the program, and the interactive reference. Nothing comes from another host.

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderName, header};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::App;

/// What the page may load and call: this service alone.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `/`, its parts, and `/docs`.
pub fn router() -> Router<App> {
    let reference = SwaggerUi::new("/docs").config(Config::from("/openapi.json"));
    Router::new()
        .route(
            "/",
            get(|| file("text/html; charset=utf-8", include_str!("index.html"))),
        )
        .route(
            "/ui/app.js",
            get(|| file("text/javascript; charset=utf-8", include_str!("app.js"))),
        )
        .route(
            "/ui/style.css",
            get(|| file("text/css; charset=utf-8", include_str!("style.css"))),
        )
        .route("/ui/icon.svg", get(|| file("image/svg+xml", include_str!("icon.svg"))))
        .merge(reference)
}

async fn file(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}
