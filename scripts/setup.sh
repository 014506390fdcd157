#!/usr/bin/env bash
# Makes this machine (Debian, Ubuntu) ready, and says what it does for that:
#   setup.sh            to build mqspan and to run it
#   setup.sh test       to test it, too
#   setup.sh backends   to test it with Jaeger, Prometheus and VictoriaLogs
#   setup.sh stress     to test it under stress, too
#   setup.sh containers to test it with containers, too
#   setup.sh compose    to test docker-compose.yml by podman, too
#   setup.sh report     to test the page of --report in a browser, too
#   setup.sh kernels    to test it on other kernels under qemu, too
#   setup.sh bench      to measure what it costs, beside other tools, too
#   setup.sh package    to make and to test its packages, too
#   setup.sh fuzz       to fuzz it, too
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/mqspan
missing=()

say() { echo "setup.sh: $*"; }
fail() {
    say "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "not root and no sudo: run as root: $*"
    fi
}

# need PACKAGE WHAT WHY: WHAT is a command or a file that the package brings
need() {
    if ! command -v "$2" >/dev/null && [ ! -e "$2" ]; then
        say "installing $1: $3"
        missing+=("$1")
    fi
}

# mounted TYPE FOLDER WHY
mounted() {
    if ! mountpoint -q "$2"; then
        say "mounting $1 at $2: $3"
        [ -d "$2" ] || as_root mkdir -p "$2"
        as_root mount -t "$1" "$1" "$2"
    fi
}

command -v cargo >/dev/null || fail "cargo is missing: install Rust 1.89 or newer (rustup's default profile)"

need clang clang "compiles bpf/ for the kernel"
need gcc gcc "links, and compiles the C that some crates bring"
need libc6-dev /usr/include/stdio.h "the C library's headers"
need make make "runs the Makefile and libbpf's"
need pkg-config pkg-config "finds libelf and zlib for libbpf"
need libelf-dev /usr/include/libelf.h "libbpf reads BPF objects with it"
need zlib1g-dev /usr/include/zlib.h "libelf and libbpf unpack with it"

if [ "${1:-}" = test ]; then
    command -v go >/dev/null || fail "go is missing: install Go 1.26 or newer, the tests' Collector is built with it"
    need strace strace "the tests compare mqspan's calls with strace's"
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        say "installing python3-venv: installs rotel, a receiver that the tests send to"
        missing+=(python3-venv)
    fi
fi

if [ "${1:-}" = backends ]; then
    command -v go >/dev/null || fail "go is missing: install Go 1.26 or newer, the tests' backends are built with it"
    for backend in jaeger prometheus promtool victoria-logs; do
        compgen -G "$cache/$backend-v*" >/dev/null ||
            say "building $backend into the cache, some minutes: a backend that the tests ask what arrived"
    done
fi

if [ "${1:-}" = stress ]; then
    need stress-ng stress-ng "calls as fast as it can, and counts them itself"
fi

if [ "${1:-}" = containers ]; then
    need strace strace "the tests compare mqspan's calls with strace's"
    need podman podman "makes the containers"
    need runc runc "runs them, also where control groups are of both versions"
fi

if [ "${1:-}" = report ]; then
    need strace strace "the tests compare mqspan's calls with strace's"
    need chromium chromium "opens the page of --report"
    need chromium-driver chromedriver "drives it"
fi

if [ "${1:-}" = kernels ]; then
    need qemu-system-x86 qemu-system-x86_64 "runs other kernels"
    need qemu-system-arm qemu-system-aarch64 "runs those of arm64"
    need mmdebstrap mmdebstrap "makes folders with the root of a Debian, to build for arm64 in"
    need debian-archive-keyring /usr/share/keyrings/debian-archive-keyring.gpg "checks what those and the kernels are made of"
    need busybox-static busybox "is all that there is beside them"
    need cpio cpio "packs what they boot from"
    need binutils strip "makes the programs small"
    need bpftool bpftool "reduces the kernel's types, as users do"
fi

if [ "${1:-}" = bench ]; then
    need strace strace "a tool that mqspan is measured beside"
    need bpftrace bpftrace "another"
fi

if [ "${1:-}" = compose ]; then
    command -v go >/dev/null || fail "go is missing: install Go 1.26 or newer, the tests' backends are built with it"
    need podman podman "runs containers"
    need runc runc "starts them also on hosts with both versions of control groups"
    need buildah buildah "makes images"
    need netavark /usr/lib/podman/netavark "connects containers"
    need aardvark-dns /usr/lib/podman/aardvark-dns "lets them find each other by name"
    need iptables iptables "lets the host reach them"
    need iproute2 ip "the same"
    need python3-venv /usr/share/doc/python3-venv "podman-compose runs in an environment of its own"
fi

if [ "${1:-}" = package ]; then
    command -v go >/dev/null || fail "go is missing: install Go 1.26 or newer, nfpm is built with it, which makes .deb and .rpm"
    [ "$(uname -m)" = x86_64 ] || fail "packages are built on x86_64, for both architectures"
    need mmdebstrap mmdebstrap "makes folders with the root of a Debian, to build in and to install to"
    need debian-archive-keyring /usr/share/keyrings/debian-archive-keyring.gpg "checks what those are made of"
    need jq jq "writes the bill of materials"
    need podman podman "makes the container images, and runs them"
    need runc runc "runs them, also where control groups are of both versions"
    need rpm rpm "reads the .rpm"
    need binutils readelf "tells whether a program is static"
    need busybox-static busybox "is all that there is beside mqspan on one machine of the tests"
    need qemu-utils qemu-img "reads the disk that the tests' Alpine comes on"
    need e2fsprogs debugfs "the same"
    need python3-venv /usr/share/doc/python3-venv "the same: gets it from PyPI"
fi

if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || fail "no apt-get: install by this system's own means: ${missing[*]}"
    as_root apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}" >/dev/null
fi

mounted tracefs /sys/kernel/tracing "where the kernel shows its tracepoints"
mounted mqueue /dev/mqueue "where the kernel shows its queues"

if [ "${1:-}" = test ]; then
    [ -x "$cache/bin/cargo-deny" ] ||
        say "installing cargo-deny into the cache, a minute or two: checks licences and sources of the crates"
    # Unoptimised it is built in a quarter of the time, and still done within seconds.
    cargo install cargo-deny --quiet --debug --locked --version 0.20.2 --root "$cache"
fi

if [ "${1:-}" = fuzz ]; then
    cargo +nightly --version >/dev/null 2>&1 || fail "Rust's nightly compiler is missing: rustup toolchain install nightly"
    [ -x "$cache/bin/cargo-fuzz" ] || say "installing cargo-fuzz into the cache, a minute: runs the fuzzers"
    cargo install cargo-fuzz --quiet --debug --locked --version 0.13.2 --root "$cache"
fi

if [ "${1:-}" = compose ] && [ ! -x "$cache/podman-compose/bin/podman-compose" ]; then
    say "installing podman-compose into the cache: runs docker-compose.yml by podman"
    python3 -m venv "$cache/podman-compose"
    "$cache/podman-compose/bin/pip" install --quiet podman-compose==1.6.0
fi

if [ "${1:-}" = package ]; then
    [ -x "$cache/bin/nfpm" ] || say "building nfpm into the cache, two minutes: makes .deb and .rpm"
    CGO_ENABLED=0 GOFLAGS="-modcacherw -buildvcs=false" GOBIN=$cache/bin \
        go install -trimpath -ldflags="-s -w" github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
fi
