#!/usr/bin/env bash
# package.sh: builds what users install, for amd64 and arm64, into target/package: archives, .deb, .rpm and container images
# around the static programs of static.sh, a bill of materials (CycloneDX) and SHA256SUMS. The same commit gives the same
# bytes, wherever it is built: docs/packages.md.
set -euo pipefail

cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mqspan
out=$PWD/target/package
work=$out/work
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
# All times are that of the commit; without git that of the sources.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}
export SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C.UTF-8
umask 022

say() { echo "package.sh: $*" >&2; }

scripts/static.sh build amd64 arm64 >/dev/null
root=$(scripts/static.sh root)
crates=$(scripts/static.sh crates)
rm -rf "$work"
find "$out" -maxdepth 1 -type f ! -name 'mqspan-linux-*' -delete
mkdir -p "$work"

# What is in the program, and under which licences.
say "collecting licences"
scripts/licences.sh "$root" "$crates" "$work"

# What every package holds, and nfpm's inputs beside it. The x86_64 program describes itself.
files=$work/files
mkdir -p "$files"/completions
cp -r deploy/packages/{deb,rpm,mqspan.yaml} "$files"
"$out/mqspan-linux-amd64" man | gzip -n9 >"$files/mqspan.1.gz"
for shell in bash zsh fish; do "$out/mqspan-linux-amd64" completions $shell >"$files/completions/mqspan.$shell"; done
# Its first lines say how to install it by hand.
sed -e 's#/usr/local/bin#/usr/bin#' -e '1,/^\[Unit\]/{/^#/d}' deploy/systemd/mqspan.service >"$files/mqspan.service"
install -D -m 0644 -t "$files/doc" LICENSE README.md CHANGELOG.md "$work/copyright" "$work"/licences/*

tar_of() { tar --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime="@$SOURCE_DATE_EPOCH" --format=ustar -C "$1" -cf - "${@:2}"; }

export VERSION=$version ARCHITECTURE
for ARCHITECTURE in amd64 arm64; do
    say "archive, .deb and .rpm for $ARCHITECTURE"
    install -m 0755 "$out/mqspan-linux-$ARCHITECTURE" "$files/mqspan"
    for packager in deb rpm; do
        (cd "$files" && "$cache/bin/nfpm" package --config "$OLDPWD/deploy/packages/nfpm.yaml" --packager $packager --target "$out" >&2)
    done
    name=mqspan-$version-linux-$ARCHITECTURE
    mkdir "$work/$name"
    cp -r "$files"/{mqspan,mqspan.1.gz,mqspan.service,mqspan.yaml,completions,doc} "$work/$name"
    tar_of "$work" "$name" | gzip -n9 >"$out/$name.tar.gz"
done

say "the container images"
for architecture in amd64 arm64; do
    context=$work/image-$architecture
    install -D -m 0755 "$out/mqspan-linux-$architecture" "$context/root/usr/bin/mqspan"
    install -D -m 0644 "$root/etc/ssl/certs/ca-certificates.crt" "$context/root/etc/ssl/certs/ca-certificates.crt"
    install -D -m 0644 -t "$context/root/usr/share/doc/mqspan" "$files"/doc/*
    # A folder of OCI's layout; podman's own archive of it has the times of this hour.
    podman build --quiet --platform "linux/$architecture" --timestamp "$SOURCE_DATE_EPOCH" --identity-label=false \
        --format oci --label "org.opencontainers.image.version=$version" --label "org.opencontainers.image.licenses=Apache-2.0" \
        --file deploy/packages/Containerfile --tag "mqspan-package-$architecture" "$context" >/dev/null
    podman push --quiet --format oci "mqspan-package-$architecture" "oci:$context/image:mqspan:$version" >/dev/null
    podman image rm "mqspan-package-$architecture" >/dev/null
    tar_of "$context/image" . >"$out/mqspan-$version-image-$architecture.tar"
done

cp "$work/bill.json" "$out/mqspan-$version.cdx.json"
(cd "$out" && find . -maxdepth 1 -type f ! -name 'mqspan-linux-*' ! -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum) >"$out/SHA256SUMS"
rm -rf "$work"
cat "$out/SHA256SUMS"
