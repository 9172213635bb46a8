# What is done often, in one line each.

# everything CI checks
ci:
    .ci/run

# formatting and lints
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# all tests, side by side
test *ARGS:
    cargo nextest run --workspace {{ARGS}}

# rewrite the generated documents
update:
    cargo run -- openapi > openapi/openapi.json
    VDISK_UPDATE=1 cargo test -p vdisk-engine --test formats_table

# the tests that compare with qemu-img
interop:
    VDISK_REQUIRE=all cargo nextest run -p vdisk-engine -p vdisk-cli

# every fuzz target for some seconds (docs/how-to/fuzz.md)
fuzz SECONDS="60" SANITIZER="none":
    fuzz/all --sanitizer {{SANITIZER}} {{SECONDS}}

# the service against the engine, two workers against one, tiny jobs
bench-whole *ARGS:
    cargo build --release -p vdisk-cli -p vdisk-api
    bench/whole.py {{ARGS}}

# how cost grows: measures and draws docs/performance/
bench-growth *ARGS:
    cargo build --release -p vdisk-cli
    bench/growth.py {{ARGS}}

# codecs, XTS, zero detection, look-ups; the queue
bench-micro *ARGS:
    cargo bench -p vdisk-engine {{ARGS}}
    cargo bench -p vdisk-service --bench queue {{ARGS}}
