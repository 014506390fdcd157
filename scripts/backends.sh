#!/usr/bin/env bash
# Builds a backend of the tests once, into the cache, and prints its path:
#   backends.sh jaeger | prometheus | victoria-logs   a program
#   backends.sh promtool                              Prometheus's program that checks and tests rules
#   backends.sh rotel                                 a program, from its wheel
#   backends.sh jaeger-ui                             the folder with Jaeger's page, to be served by jaeger
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/mqspan
jaeger=v1.76.0
prometheus=v0.316.0
victoria_logs=v1.51.1-0.20260624061259-dc94972a8708
victoria_metrics=v1.148.8
rotel=0.0.1a15
ui=0.0.2

mkdir -p "$cache"
building=$(mktemp -d)
trap 'chmod -R u+w "$building"; rm -rf "$building"' EXIT

say() { echo "backends.sh: $*" >&2; }
# build ARG...: by Go, a static program without its debugging information
build() { CGO_ENABLED=0 GOFLAGS="-modcacherw -buildvcs=false" go build -trimpath -ldflags="-s -w" "$@" >&2; }
# module PATH@VERSION: the folder of its sources
module() { go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; }

case ${1:-} in
jaeger)
    made=$cache/jaeger-$jaeger
    if [ ! -x "$made" ]; then
        say "building Jaeger $jaeger, three to six minutes"
        # Its go.mod replaces modules, which counts in its own folder only.
        cp -r "$(module "github.com/jaegertracing/jaeger@$jaeger")" "$building/jaeger"
        chmod -R u+w "$building/jaeger"
        (cd "$building/jaeger" && build -o "$building/made" ./cmd/jaeger)
        mv "$building/made" "$made"
    fi
    ;;
prometheus | promtool)
    made=$cache/$1-$prometheus
    if [ ! -x "$made" ]; then
        say "building $1 $prometheus, two minutes"
        # Without what finds targets to scrape, which is most of it.
        CGO_ENABLED=0 GOFLAGS="-modcacherw -buildvcs=false" GOBIN=$building go install -trimpath -ldflags="-s -w" \
            -tags remove_all_sd "github.com/prometheus/prometheus/cmd/$1@$prometheus" >&2
        mv "$building/$1" "$made"
    fi
    ;;
victoria-logs)
    made=$cache/victoria-logs-$victoria_logs
    if [ ! -x "$made" ]; then
        say "building VictoriaLogs $victoria_logs, a minute"
        cat >"$building/go.mod" <<END
module backend

go 1.26.5

require (
	github.com/VictoriaMetrics/VictoriaLogs $victoria_logs
	github.com/VictoriaMetrics/VictoriaMetrics $victoria_metrics
)
END
        (cd "$building" && build -mod=mod -o "$building/made" github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs)
        mv "$building/made" "$made"
    fi
    ;;
rotel)
    made=$cache/rotel-$rotel
    if [ ! -x "$made" ]; then
        say "installing rotel $rotel"
        python3 -m venv "$building/venv" >&2
        # The wheel's program alone: Python is not needed to run it.
        "$building/venv/bin/pip" --quiet --disable-pip-version-check install --pre --no-deps --no-compile \
            --target "$building/wheel" "rotel==$rotel" >&2
        mv "$building/wheel/rotel/rotel-agent" "$made"
    fi
    ;;
jaeger-ui)
    made=$cache/jaeger-ui-$ui
    if [ ! -e "$made/index.html" ]; then
        say "fetching Jaeger's page from the crate otlp-embedded $ui"
        # Unpacks the one crate, where `cargo fetch` would bring all that it depends on, too.
        (cd "$building" && cargo info --quiet "otlp-embedded@$ui" >"$building/info")
        cp -r "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"otlp-embedded-$ui/jaeger-ui/build" "$building/made"
        mv "$building/made" "$made"
    fi
    ;;
*)
    sed -n '2,/^set/s/^# \?//p' "$0" >&2
    exit 2
    ;;
esac
echo "$made"
