#!/usr/bin/env bash
# root.sh SUITE ARCHITECTURE[,ARCHITECTURE] PACKAGE...: makes a root folder of that Debian suite with these packages once,
# into the cache, and prints its path. Needs root, for what it unpacks belongs to others. apt checks the signatures.
# SUITE:release is that suite without its security updates, for tools whose programs only tests run.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/mqspan/roots
name=${1/:/-}
suite=${1%:release}
updates=$([ "$1" = "$suite" ] && echo yes || echo no)
architectures=$2
shift 2
root=$cache/$name-$(echo "$architectures" "$@" | sha256sum | cut -c1-12)

# The archive that this machine gets its packages from; mmdebstrap's own where that is not Debian's.
archive() { sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | grep -E "$1" | head -1 || true; }

if [ ! -d "$root" ]; then
    echo "root.sh: making a root of Debian $suite for $architectures, some minutes the first time" >&2
    mkdir -p "$cache"
    making=$(mktemp -d "$cache/making.XXXXXX")
    trap 'rm -rf "$making"' EXIT
    sources=()
    if [ -n "$(archive 'debian/?$')" ]; then
        sources=("deb $(archive 'debian/?$') $suite main")
        if [ "$updates" = yes ]; then sources+=("deb $(archive security) $suite-security main"); fi
    fi
    mmdebstrap --quiet --mode=root --variant=minbase --architectures="$architectures" \
        --include="$(IFS=, && echo "$*")" --aptopt='Acquire::Retries "3"' --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
        "$suite" "$making/root" "${sources[@]}" >&2
    mv "$making/root" "$root"
fi
echo "$root"
