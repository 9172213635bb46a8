//! What this process counts, and the sums of the database, as Prometheus reads them.

use std::collections::HashSet;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use vdisk_service::Timestamp;
use vdisk_service::model::Statistics;

/// Media type of Prometheus text.
pub const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Media type of what [`Metrics::render`] writes.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// From a millisecond to half a minute.
const SECONDS: [f64; 10] = [0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 30.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HttpLabels {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct GrpcLabels {
    method: String,
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ImageLabels {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct JobLabels {
    kind: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

/// Counters of this process.
pub struct Metrics {
    http: Family<HttpLabels, Histogram, fn() -> Histogram>,
    grpc: Family<GrpcLabels, Histogram, fn() -> Histogram>,
    transferred: Family<DirectionLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            http: Family::new_with_constructor(histogram),
            grpc: Family::new_with_constructor(histogram),
            transferred: Family::default(),
        }
    }
}

impl Metrics {
    /// An HTTP request was answered. `route` is the pattern, not the path.
    pub fn http_answered(&self, method: &str, route: &str, status: u16, took: Duration) {
        let labels = HttpLabels {
            method: method.to_owned(),
            route: route.to_owned(),
            status,
        };
        self.http.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A gRPC call ended. `method` is one of those that exist.
    pub fn grpc_ended(&self, method: &str, code: tonic::Code, took: Duration) {
        let labels = GrpcLabels {
            method: method.to_owned(),
            code: format!("{code:?}"),
        };
        self.grpc.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Bytes of an upload arrived.
    pub fn received(&self, bytes: usize) {
        self.transferred(bytes, "in");
    }

    /// Bytes of a download left.
    pub fn sent(&self, bytes: usize) {
        self.transferred(bytes, "out");
    }

    fn transferred(&self, bytes: usize, direction: &'static str) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.transferred
            .get_or_create(&DirectionLabels { direction })
            .inc_by(bytes);
    }

    /// Everything as text.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn render(&self, sums: &Statistics, now: Timestamp) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("vdisk");
        registry.register(
            "http_request_duration_seconds",
            "HTTP requests until their head was sent",
            self.http.clone(),
        );
        registry.register(
            "grpc_request_duration_seconds",
            "gRPC calls until their status was sent",
            self.grpc.clone(),
        );
        registry.register(
            "transferred_bytes",
            "Bytes of images received and sent",
            self.transferred.clone(),
        );
        register_sums(&mut registry, sums, now);
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// The same as Prometheus text 0.0.4, for who does not ask for OpenMetrics: there a counter is named as its sample is.
pub fn as_prometheus_text(text: &str) -> String {
    let counter = |line: &str| {
        line.strip_prefix("# TYPE ")?
            .strip_suffix(" counter")
            .map(str::to_owned)
    };
    let counters: HashSet<String> = text.lines().filter_map(counter).collect();
    let mut plain = String::with_capacity(text.len());
    for line in text
        .lines()
        .filter(|line| *line != "# EOF" && !line.starts_with("# UNIT "))
    {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                plain.push_str(&format!("# {what} {name}_total {rest}"));
            }
            _ => plain.push_str(line),
        }
        plain.push('\n');
    }
    plain
}

fn register_sums(registry: &mut Registry, sums: &Statistics, now: Timestamp) {
    let images = Family::<ImageLabels, Gauge>::default();
    for (state, count) in &sums.images {
        images
            .get_or_create(&ImageLabels { state: state.as_str() })
            .set(gauge(*count));
    }
    registry.register("images", "Images by state", images);
    let jobs = Family::<JobLabels, Gauge>::default();
    let bytes = Family::<KindLabels, Counter>::default();
    for sum in &sums.jobs {
        let labels = JobLabels {
            kind: sum.kind.as_str(),
            state: sum.state.as_str(),
        };
        jobs.get_or_create(&labels).set(gauge(sum.count));
        bytes
            .get_or_create(&KindLabels {
                kind: sum.kind.as_str(),
            })
            .inc_by(sum.done_bytes);
    }
    registry.register("jobs", "Jobs by kind and state", jobs);
    registry.register("job_processed_bytes", "Bytes that jobs have worked through", bytes);
    let age = sums.oldest_queued.map_or(Duration::ZERO, |queued| now.since(queued));
    registry.register(
        "queue_age_seconds",
        "How long the oldest queued job has waited",
        ConstGauge::new(age.as_secs_f64()),
    );
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use vdisk_service::model::{ImageState, JobKind, JobState, JobSum};

    use super::*;

    #[test]
    fn everything_counted_is_shown() {
        let metrics = Metrics::default();
        metrics.http_answered("GET", "/v1/images/{id}", 404, Duration::from_millis(2));
        metrics.grpc_ended("/vdisk.v1.JobService/GetJob", tonic::Code::Ok, Duration::from_millis(2));
        metrics.received(7);
        metrics.sent(9);
        let sums = Statistics {
            images: vec![(ImageState::Ready, 3)],
            jobs: vec![JobSum {
                kind: JobKind::Convert,
                state: JobState::Queued,
                count: 2,
                done_bytes: 4096,
            }],
            oldest_queued: Some(Timestamp(1_000)),
        };
        let text = metrics.render(&sums, Timestamp(3_500)).unwrap();
        for line in [
            r#"vdisk_http_request_duration_seconds_count{method="GET",route="/v1/images/{id}",status="404"} 1"#,
            r#"vdisk_grpc_request_duration_seconds_count{method="/vdisk.v1.JobService/GetJob",code="Ok"} 1"#,
            r#"vdisk_transferred_bytes_total{direction="in"} 7"#,
            r#"vdisk_transferred_bytes_total{direction="out"} 9"#,
            r#"vdisk_images{state="ready"} 3"#,
            r#"vdisk_jobs{kind="convert",state="queued"} 2"#,
            r#"vdisk_job_processed_bytes_total{kind="convert"} 4096"#,
            "vdisk_queue_age_seconds 2.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        let plain = as_prometheus_text(&text);
        assert!(!plain.contains("# EOF") && plain.ends_with('\n'), "{plain}");
        for line in [
            "# TYPE vdisk_transferred_bytes_total counter",
            r#"vdisk_transferred_bytes_total{direction="in"} 7"#,
            "# TYPE vdisk_images gauge",
        ] {
            assert!(
                plain.lines().any(|found| found == line),
                "{line} is missing in\n{plain}"
            );
        }
    }
}
