//! The HTTP interface. One file an endpoint or noun; what they share stands in `extract/`, `reply`, `problem`.

mod declared;
pub mod document;
mod documented;
mod download;
mod events;
mod examples;
pub mod extract;
mod fallback;
mod formats;
mod guard;
mod image_check;
mod image_commit;
mod image_compare;
mod image_compress;
mod image_convert;
mod image_data;
mod image_decrypt;
mod image_encrypt;
mod image_file;
mod image_flatten;
mod image_import;
mod image_inspection;
mod image_layout;
mod image_map;
mod image_measure;
mod image_rebase;
mod image_rekey;
mod image_resize;
mod images;
mod jobs;
pub mod observe;
mod paging;
mod pools;
pub mod problem;
mod reply;
mod secrets;
mod snapshots;
mod system;
mod tokens;
mod webhooks;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use http::HeaderName;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{PropagateRequestIdLayer, SetRequestIdLayer};
use utoipa_axum::router::OpenApiRouter;

use self::declared::{Declared, only_declared};
use crate::access::{authenticate, hosts, limits};
use crate::state::App;
use crate::{grpc, web};

/// Every documented route.
pub fn api() -> OpenApiRouter<App> {
    let routers = [
        images::router(),
        image_import::router(),
        image_inspection::router(),
        image_layout::router(),
        image_map::router(),
        image_file::router(),
        image_data::router(),
        image_convert::router(),
        image_compress::router(),
        image_rebase::router(),
        image_commit::router(),
        image_check::router(),
        image_resize::router(),
        image_compare::router(),
        image_encrypt::router(),
        image_decrypt::router(),
        image_rekey::router(),
        image_measure::router(),
        image_flatten::router(),
        snapshots::router(),
        jobs::router(),
        events::router(),
        pools::router(),
        formats::router(),
        secrets::router(),
        tokens::router(),
        webhooks::router(),
        system::router(),
    ];
    routers
        .into_iter()
        .fold(OpenApiRouter::with_openapi(document::base()), OpenApiRouter::merge)
}

/// Both transports and the pages, behind everything that every request passes.
pub fn router(app: App) -> Router {
    let id = HeaderName::from_static("x-request-id");
    let (routes, document) = api().split_for_parts();
    let declared = Arc::new(Declared::by(&document));
    let grpc = grpc::router(&app);
    routes
        .merge(web::router())
        // Not of methods that a path does not know.
        .route_layer(from_fn_with_state(declared, only_declared))
        .route_layer(from_fn(guard::unconditional))
        .method_not_allowed_fallback(fallback::method_not_allowed)
        .fallback(move |request| fallback::no_route(grpc, request))
        .layer(from_fn(fallback::finish_what_was_begun))
        .layer(from_fn_with_state(app.clone(), authenticate::authenticate))
        .layer(from_fn(guard::same_origin))
        .layer(from_fn_with_state(app.clone(), hosts::known_host))
        .layer(from_fn(limits::head_in_bounds))
        .layer(CatchPanicLayer::custom(fallback::panicked))
        .layer(PropagateRequestIdLayer::new(id.clone()))
        .layer(from_fn_with_state(app.clone(), observe::observe))
        .layer(SetRequestIdLayer::new(id, observe::NewRequestId))
        .with_state(app)
}
