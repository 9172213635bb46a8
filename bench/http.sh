#!/usr/bin/env bash
# Requests a second and latencies of GET /v1/images/{id} by 64 connections on loopback: idle, then beside a compressing convert.
# Takes wrk, curl, Python and `cargo build --release -p vdisk-api`; 1.2 GiB in /dev/shm, removed at the end. Runs for half a minute.
set -euo pipefail
program=${1:-$(dirname "$0")/../target/release/vdiskd}
place=$(mktemp -d -p /dev/shm)
trap 'kill "$server" 2>/dev/null; rm -rf "$place"' EXIT

"$program" serve --listen 127.0.0.1:0 --data-dir "$place" --log error >"$place/out" &
server=$!
until grep -q http "$place/out"; do sleep 0.1; done
url=$(grep -o 'http://[^ ]*' "$place/out")

field() {
  python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

load() {
  printf '\n== %s\n' "$1"
  wrk --threads 1 --connections 64 --duration 10s --latency "$url/v1/images/$image" |
    grep -E '^ +(50|99)%|Requests/sec|Non-2xx|Socket errors'
}

image=$(curl -sf "$url/v1/images/import" --json '{"name": "source", "format": "raw", "source": {"upload": true}}' | field id)
# Half noise, half text that repeats: work for the compressor.
python3 - "$place/source" <<'MAKE'
import os, sys
with open(sys.argv[1], "wb") as out:
    for number in range(1100):
        out.write(os.urandom(1 << 19) + (b"line %d of a log\n" % number * 40000)[: 1 << 19])
MAKE
curl -sf -T "$place/source" "$url/v1/images/$image/file" -o /dev/null
rm "$place/source"

load "idle"
job=$(curl -sf "$url/v1/images/$image/convert" --json '{"name": "copy", "format": "qcow2", "compress": true}' | field id)
load "with one convert running"
echo "the job is $(curl -sf "$url/v1/jobs/$job" | field state) by then"
