//! The one table of what every route and call needs. What is not in it is for admins alone.

use axum::extract::{MatchedPath, Request};
use http::Method;
use vdisk_service::model::Role;

use crate::grpc;

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: health, and documents that hold no data.
    Open,
    /// Nothing, or the role reader: the operator chooses.
    Metrics,
    /// A caller with at least this role.
    Role(Role),
}

const READ: Need = Need::Role(Role::Reader);
const WORK: Need = Need::Role(Role::Operator);
const RULE: Need = Need::Role(Role::Admin);

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What it takes.
    pub need: Need,
    /// Method and route, or service and call.
    pub action: String,
}

/// HTTP method, route, gRPC call, need. A noun that one transport does not have is `""`.
#[rustfmt::skip]
pub const TABLE: &[(&str, &str, &str, Need)] = &[
    ("GET",    "/healthz",                                  "",                              Need::Open),
    ("GET",    "/readyz",                                   "",                              Need::Open),
    ("GET",    "/metrics",                                  "",                              Need::Metrics),
    ("GET",    "/openapi.json",                             "",                              Need::Open),
    ("GET",    "/",                                         "",                              Need::Open),
    ("GET",    "/ui/app.js",                                "",                              Need::Open),
    ("GET",    "/ui/events.js",                             "",                              Need::Open),
    ("GET",    "/ui/rows.js",                               "",                              Need::Open),
    ("GET",    "/ui/session.js",                            "",                              Need::Open),
    ("GET",    "/ui/style.css",                             "",                              Need::Open),
    ("GET",    "/ui/icon.svg",                              "",                              Need::Open),
    ("GET",    "/docs",                                     "",                              Need::Open),
    ("GET",    "/docs/",                                    "",                              Need::Open),
    ("GET",    "/docs/{*rest}",                             "",                              Need::Open),
    ("GET",    "/v1/formats",                               "FormatService/ListFormats",     READ),
    ("GET",    "/v1/pools",                                 "PoolService/ListPools",         READ),
    ("GET",    "/v1/pools/{pool}",                          "PoolService/GetPool",           READ),
    ("POST",   "/v1/pools/{pool}/scan",                     "PoolService/ScanPool",          WORK),
    ("GET",    "/v1/images",                                "ImageService/ListImages",       READ),
    ("POST",   "/v1/images",                                "ImageService/CreateImage",      WORK),
    ("POST",   "/v1/images/import",                         "ImageService/ImportImage",      WORK),
    ("GET",    "/v1/images/{id}",                           "ImageService/GetImage",         READ),
    ("PATCH",  "/v1/images/{id}",                           "ImageService/UpdateImage",      WORK),
    ("DELETE", "/v1/images/{id}",                           "ImageService/DeleteImage",      WORK),
    ("PUT",    "/v1/images/{id}/file",                      "ImageService/UploadFile",       WORK),
    ("",       "",                                          "ImageService/GetUploadStatus",  WORK),
    ("GET",    "/v1/images/{id}/file",                      "ImageService/DownloadFile",     READ),
    ("GET",    "/v1/images/{id}/data",                      "ImageService/DownloadData",     READ),
    ("GET",    "/v1/images/{id}/info",                      "ImageService/GetImageInfo",     READ),
    ("GET",    "/v1/images/{id}/inspection",                "ImageService/InspectImage",     READ),
    ("GET",    "/v1/images/{id}/chain",                     "ImageService/GetChain",         READ),
    ("GET",    "/v1/images/{id}/dependents",                "ImageService/ListDependents",   READ),
    ("GET",    "/v1/images/{id}/map",                       "ImageService/GetMap",           READ),
    ("POST",   "/v1/images/{id}/measure",                   "ImageService/MeasureImage",     READ),
    ("POST",   "/v1/images/{id}/convert",                   "ImageService/ConvertImage",     WORK),
    ("POST",   "/v1/images/{id}/compress",                  "ImageService/CompressImage",    WORK),
    ("POST",   "/v1/images/{id}/rebase",                    "ImageService/RebaseImage",      WORK),
    ("POST",   "/v1/images/{id}/commit",                    "ImageService/CommitImage",      WORK),
    ("POST",   "/v1/images/{id}/check",                     "ImageService/CheckImage",       WORK),
    ("POST",   "/v1/images/{id}/resize",                    "ImageService/ResizeImage",      WORK),
    ("POST",   "/v1/images/{id}/compare",                   "ImageService/CompareImages",    WORK),
    ("POST",   "/v1/images/{id}/flatten",                   "ImageService/FlattenImage",     WORK),
    ("POST",   "/v1/images/{id}/encrypt",                   "ImageService/EncryptImage",     WORK),
    ("POST",   "/v1/images/{id}/decrypt",                   "ImageService/DecryptImage",     WORK),
    ("POST",   "/v1/images/{id}/rekey",                     "ImageService/RekeyImage",       WORK),
    ("GET",    "/v1/images/{id}/snapshots",                 "ImageService/ListSnapshots",    READ),
    ("POST",   "/v1/images/{id}/snapshots",                 "ImageService/CreateSnapshot",   WORK),
    ("GET",    "/v1/images/{id}/snapshots/{name}",          "",                              READ),
    ("DELETE", "/v1/images/{id}/snapshots/{name}",          "ImageService/DeleteSnapshot",   WORK),
    ("POST",   "/v1/images/{id}/snapshots/{name}/apply",    "ImageService/ApplySnapshot",    WORK),
    ("GET",    "/v1/jobs",                                  "JobService/ListJobs",           READ),
    ("GET",    "/v1/jobs/{id}",                             "JobService/GetJob",             READ),
    ("",       "",                                          "JobService/WaitJob",            READ),
    ("",       "",                                          "PlanService/PlanJob",           WORK),
    ("PATCH",  "/v1/jobs/{id}",                             "JobService/UpdateJob",          WORK),
    ("POST",   "/v1/jobs/{id}/cancel",                      "JobService/CancelJob",          WORK),
    ("POST",   "/v1/jobs/{id}/pause",                       "JobService/PauseJob",           WORK),
    ("POST",   "/v1/jobs/{id}/resume",                      "JobService/ResumeJob",          WORK),
    ("GET",    "/v1/jobs/{id}/events",                      "JobService/WatchJobs",          READ),
    ("GET",    "/v1/events",                                "",                              READ),
    ("GET",    "/v1/secrets",                               "SecretService/ListSecrets",     WORK),
    ("POST",   "/v1/secrets",                               "SecretService/CreateSecret",    WORK),
    ("GET",    "/v1/secrets/{id}",                          "SecretService/GetSecret",       WORK),
    ("DELETE", "/v1/secrets/{id}",                          "SecretService/DeleteSecret",    WORK),
    ("POST",   "/v1/master-key/rotate",                     "SecretService/RotateMasterKey", RULE),
    ("GET",    "/v1/tokens",                                "TokenService/ListTokens",       RULE),
    ("POST",   "/v1/tokens",                                "TokenService/CreateToken",      RULE),
    ("GET",    "/v1/tokens/{id}",                           "TokenService/GetToken",         RULE),
    ("DELETE", "/v1/tokens/{id}",                           "TokenService/RevokeToken",      RULE),
    ("GET",    "/v1/webhooks",                              "WebhookService/ListWebhooks",   RULE),
    ("POST",   "/v1/webhooks",                              "WebhookService/CreateWebhook",  RULE),
    ("GET",    "/v1/webhooks/{id}",                         "WebhookService/GetWebhook",     RULE),
    ("DELETE", "/v1/webhooks/{id}",                         "WebhookService/DeleteWebhook",  RULE),
    ("GET",    "/v1/audit",                                 "AuditService/ListAudit",        RULE),
];

/// The role that an HTTP operation takes; `None` for what everybody may ask.
pub fn needed(method: &str, route: &str) -> Option<Role> {
    let method = method.to_ascii_uppercase().parse().unwrap_or(Method::TRACE);
    match Asked::http(&method, route).need {
        Need::Open => None,
        Need::Metrics => Some(Role::Reader),
        Need::Role(role) => Some(role),
    }
}

/// Whether a request takes more than a reader: it may change something.
pub fn changes(request: &Request) -> bool {
    matches!(Asked::of(request).need, Need::Role(role) if role > Role::Reader)
}

/// Services of gRPC itself: health, and the descriptors that `proto/` shows to everybody.
const OPEN_SERVICES: [&str; 3] = [
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];

impl Asked {
    /// Reads it off a request. The router has decided by then which transport will answer: a route that matched is
    /// HTTP whatever the content type says.
    pub fn of(request: &Request) -> Self {
        if let Some(route) = request.extensions().get::<MatchedPath>() {
            return Self::http(request.method(), route.as_str());
        }
        let path = request.uri().path();
        if grpc::is_call(request) {
            return Self::grpc(path);
        }
        // There is nothing there: the fallback says so to anybody.
        Self {
            need: Need::Open,
            action: "none".to_owned(),
        }
    }

    fn http(method: &Method, route: &str) -> Self {
        // HEAD is answered by the handlers of GET.
        let handled = if method == Method::HEAD { "GET" } else { method.as_str() };
        let row = TABLE.iter().find(|row| row.0 == handled && row.1 == route);
        Self {
            need: row.map_or(RULE, |row| row.3),
            action: format!("{} {route}", method.as_str().chars().take(16).collect::<String>()),
        }
    }

    fn grpc(path: &str) -> Self {
        let call = path.strip_prefix("/vdisk.v1.").unwrap_or("");
        if OPEN_SERVICES.iter().any(|service| path.starts_with(service)) {
            return Self {
                need: Need::Open,
                action: path.chars().take(128).collect(),
            };
        }
        let row = TABLE.iter().find(|row| !call.is_empty() && row.2 == call);
        Self {
            need: row.map_or(RULE, |row| row.3),
            action: row.map_or("unknown call", |row| row.2).to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_the_table_is_for_admins() {
        for (method, route) in [("PUT", "/v1/images"), ("OPTIONS", "/v1/images"), ("GET", "/v1/new")] {
            assert_eq!(
                Asked::http(&method.parse().unwrap(), route).need,
                RULE,
                "{method} {route}"
            );
        }
        for path in [
            "/vdisk.v1.",
            "/vdisk.v1.ImageService/",
            "/vdisk.v2.ImageService/GetImage",
            "/x/y",
        ] {
            assert_eq!(Asked::grpc(path).need, RULE, "{path}");
        }
        assert_eq!(Asked::grpc("/vdisk.v1.ImageService/GetImage").need, READ);
        let head = Asked::http(&Method::HEAD, "/v1/images");
        assert_eq!((head.need, head.action.as_str()), (READ, "HEAD /v1/images"));
    }

    #[test]
    fn rows_are_distinct() {
        let mut routes: Vec<_> = TABLE
            .iter()
            .filter(|row| !row.0.is_empty())
            .map(|row| (row.0, row.1))
            .collect();
        let mut calls: Vec<_> = TABLE.iter().filter(|row| !row.2.is_empty()).map(|row| row.2).collect();
        let counts = (routes.len(), calls.len());
        routes.sort_unstable();
        routes.dedup();
        calls.sort_unstable();
        calls.dedup();
        assert_eq!((routes.len(), calls.len()), counts);
    }
}
