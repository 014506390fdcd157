#!/usr/bin/env bash
# Builds the OpenTelemetry Collector of tests/collector once, into the cache, and prints the path of its binary.
set -euo pipefail

cd "$(dirname "$0")/../tests/collector"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mqspan
# Another manifest or another Go gives another binary.
key=$({ go version && cat go.mod go.sum ./*.go; } | sha256sum | cut -c1-12)
binary=$cache/otelcol-$key

if [ ! -x "$binary" ]; then
    echo "collector.sh: building the OpenTelemetry Collector, some minutes the first time" >&2
    mkdir -p "$cache"
    CGO_ENABLED=0 GOFLAGS="-modcacherw -buildvcs=false" go build -trimpath -ldflags="-s -w" -o "$binary.$$" . >&2
    mv "$binary.$$" "$binary"
fi
echo "$binary"
