#!/usr/bin/env bash
# Makes the images of docker-compose.yml from programs that are here, since a test may pull none: each holds one or two
# programs and the libraries that they need, under the name that the compose file uses.
#   images.sh MQSPAN APPLICATION COLLECTOR JAEGER PROMETHEUS
set -euo pipefail

cd "$(dirname "$0")/.."
export CONTAINERS_CONF=$PWD/tests/compose/containers.conf

# named SERVICE: the image that docker-compose.yml names for it
named() {
    awk -v service="  $1:" '$0 == service { here = 1; next } /^  [a-z]/ { here = 0 } here && $1 == "image:" { print $2 }' \
        docker-compose.yml
}

# image NAME ENTRYPOINT FILE=PROGRAM...: FILE is the path inside
image() {
    local name=$1 entrypoint=$2 context
    shift 2
    context=$(mktemp -d)
    for pair in "$@"; do
        install -D "${pair#*=}" "$context/root${pair%%=*}"
        # What the program is linked to, where its loader will look for it.
        { ldd "${pair#*=}" 2>/dev/null || true; } | { grep -o "/[^ ]*" || true; } | while read -r library; do
            install -D "$library" "$context/root$library"
        done
    done
    mkdir -p "$context/root/tmp" "$context/root/etc"
    echo "root:x:0:0:root:/root:/bin/sh" >"$context/root/etc/passwd"
    printf 'FROM scratch\nCOPY root /\nENTRYPOINT ["%s"]\n' "$entrypoint" >"$context/Dockerfile"
    podman build --quiet --tag "$name" "$context" >/dev/null
    rm -r "$context"
    echo "images.sh: $name"
}

image "$(named mqspan)" /usr/local/bin/mqspan "/usr/local/bin/mqspan=$1" "/usr/local/bin/${2##*/}=$2"
image "$(named collector)" /otelcol "/otelcol=$3"
image "$(named jaeger)" /jaeger "/jaeger=$4"
image "$(named prometheus)" /prometheus "/prometheus=$5"
