#!/usr/bin/env bash
# licences.sh ROOT CRATES OUT: what becomes part of the static programs, of the packages in ROOT and of the folder CRATES:
#   OUT/crates.json     the crates that are linked, with their versions, licences and checksums
#   OUT/bill.json       the bill of materials (CycloneDX 1.6)
#   OUT/copyright       the licences and notices of all of it
#   OUT/licences/       the licences that those name without their text
set -euo pipefail

cd "$(dirname "$0")/.."
root=$1
crates=$2
out=$3

metadata() {
    cargo metadata --format-version 1 --locked --offline --features static --filter-platform "$1" \
        --config 'source.crates-io.replace-with="fetched"' --config "source.fetched.directory=\"$crates\""
}

# From mqspan along what is linked: no build scripts, no tests, no macros.
# shellcheck disable=SC2016
linked='
(.packages | map({key: .id, value: .}) | from_entries) as $packages
| (.resolve.nodes | map({key: .id, value: [.deps[] | select(any(.dep_kinds[]; .kind == null)) | .pkg]}) | from_entries) as $uses
| def is_macro: any($packages[.].targets[].kind[]; . == "proc-macro");
  {seen: [], next: [.resolve.root]}
| until(.next == []; .seen += .next | .seen as $seen
    | .next = ([.next[] | $uses[.][] | select(is_macro | not)] | unique - $seen))
| .seen | map($packages[.] | {name, version, license, source, uses: [$uses[.id][] | $packages[.].name + "@" + $packages[.].version]})
'
for target in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu; do metadata "$target" | jq "$linked"; done |
    jq -s 'add | unique_by(.name, .version)' >"$out/linked.json"

# With the checksums of Cargo.lock.
awk '/^name = /{name=$3} /^version = /{version=$3} /^checksum = /{print "[" name "," version "," $3 "]"}' Cargo.lock | tr -d '\n' |
    sed 's/\]\[/],[/g; s/^/[/; s/$/]/' >"$out/checksums.json"
jq --slurpfile sums "$out/checksums.json" '
    ($sums[0] | map({key: (.[0] + "@" + .[1]), value: .[2]}) | from_entries) as $sums
    | map(. + {sha256: $sums[.name + "@" + .version]})' "$out/linked.json" >"$out/crates.json"

# What comes of Debian's packages: of the C library, of the compilers' own libraries, of libelf and zlib.
declare -A licence=(
    [libc6-dev]="LGPL-2.1-or-later"
    [libgcc-12-dev]="GPL-3.0-or-later WITH GCC-exception-3.1"
    [libelf-dev]="LGPL-3.0-or-later OR GPL-2.0-or-later"
    [zlib1g-dev]="Zlib"
    [libstd-rust-web-dev]="MIT OR Apache-2.0"
)
packages=(libc6-dev libelf-dev libgcc-12-dev libstd-rust-web-dev zlib1g-dev)
for package in "${packages[@]}"; do
    dpkg-query --admindir="$root/var/lib/dpkg" -W \
        -f '${Package}\t${Version}\t${source:Package}\t${source:Version}\n' "$package:amd64" |
        jq -R --arg licence "${licence[$package]}" 'split("\t") | {name: .[0], version: .[1], source: .[2], source_version: .[3], license: $licence}'
done | jq -s . >"$out/debian.json"

# What else is linked: C libraries that crates bring with them, in the versions that they bring, and what mqspan's page brings.
# bundled CRATE NAME PURL_WITHOUT_VERSION VERSION LICENCE
bundled() {
    jq -n --arg crate "$1" --arg name "$2" --arg purl "$3" --arg version "$4" --arg licence "$5" \
        '{crate: $crate, name: $name, version: $version, purl: "\($purl)@\($version)", license: $licence}'
}
of_crate() { basename "$crates/$1"-[0-9]* | sed "s/.*+$2//"; }
{
    bundled libbpf-sys libbpf pkg:github/libbpf/libbpf "$(of_crate libbpf-sys '')" "LGPL-2.1-only OR BSD-2-Clause"
    bundled zstd-sys zstd pkg:github/facebook/zstd "v$(of_crate zstd-sys zstd.)" "BSD-3-Clause OR GPL-2.0-only"
    bundled libsqlite3-sys sqlite pkg:generic/sqlite \
        "$(sed -n 's/^#define SQLITE_VERSION *"\(.*\)"/\1/p' "$crates"/libsqlite3-sys-*/sqlite3/sqlite3.h)" blessing
    bundled mqspan uplot pkg:npm/uplot "$(sed -n '1s/.*(v\(.*\)).*/\1/p' templates/uplot/uPlot.iife.min.js)" MIT
} | jq -s . >"$out/bundled.json"

jq --slurpfile debian "$out/debian.json" --slurpfile bundled "$out/bundled.json" --arg time "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" '
    def reference: "pkg:cargo/\(.name)@\(.version)";
    def component: {
        type: "library", "bom-ref": reference, name, version, purl: "pkg:cargo/\(.name)@\(.version | @uri)",
        licenses: [{expression: (.license | gsub(" */ *"; " OR "))}],
        hashes: (if .sha256 then [{alg: "SHA-256", content: .sha256}] else null end)
    } | del(.hashes | nulls);
    def package: "pkg:deb/debian/\(.name)@\(.version | @uri)?distro=bookworm";
    map(select(.name == "mqspan"))[0] as $mqspan
    | {
        bomFormat: "CycloneDX", specVersion: "1.6", version: 1,
        metadata: {timestamp: $time, component: ($mqspan | component | .type = "application")},
        components: (map(select(.name != "mqspan") | component) + ($debian[0] | map({
            type: "library", "bom-ref": package, name, version, purl: package, licenses: [{expression: .license}],
            properties: [{name: "debian:source", value: "\(.source) \(.source_version)"}]
        })) + ($bundled[0] | map({
            type: "library", "bom-ref": .purl, name, version, purl, licenses: [{expression: .license}]
        }))),
        dependencies: (map(. as $of | {ref: reference, dependsOn: (
            (.uses | map("pkg:cargo/" + .)) + (if .name == "mqspan" then $debian[0] | map(package) else [] end)
            + ($bundled[0] | map(select(.crate == $of.name) | .purl))
        )}))
    }
    | ([.components[]."bom-ref", .metadata.component."bom-ref"]) as $known
    | .dependencies[].dependsOn |= map(select(. as $one | $known | index($one)))
' "$out/crates.json" >"$out/bill.json"

# The same text once, with all who say it.
declare -A said
texts=$out/texts
rm -rf "$texts" && mkdir -p "$texts"
# add FILE WHOSE
add() {
    local sum
    sum=$(sha256sum "$1" | cut -c1-16)
    [ -e "$texts/$sum" ] || cp "$1" "$texts/$sum"
    said[$sum]+=" $2"
}
while read -r crate; do
    while read -r file; do
        add "$file" "$crate"
    done < <(find "$crates/$crate" -type f \( -iname 'licen[sc]e*' -o -iname 'copying*' -o -iname 'notice*' -o -iname 'copyright*' \) \
        ! -name '*.rs' ! -name '*.toml' | sort)
done < <(jq -r '.[] | select(.source) | .name + "-" + .version' "$out/crates.json" | sort)
for package in "${packages[@]}"; do
    name=$package
    # Where a documentation folder is another's.
    file=$(readlink -f "$root/usr/share/doc/$name")/copyright
    case $file in "$root"/*) ;; *) file=$root$file ;; esac
    add "$file" "$package(Debian)"
done
add templates/uplot/LICENSE uPlot
{
    echo "What is part of this program beside mqspan itself, under which licence, and what each of them asks to be said."
    echo "mqspan is under Apache-2.0: LICENSE. How to link it with other versions of libelf and of the C library, whose"
    echo "licences give you that right: docs/packages.md of the sources, from which all of it can be built."
    echo
    jq -r '.[] | select(.source) | "\(.name) \(.version): \(.license)"' "$out/crates.json"
    jq -r '.[] | "\(.name) \(.version), of Debian'"'"'s source package \(.source) \(.source_version): \(.license)"' "$out/debian.json"
    for text in "${!said[@]}"; do echo "${said[$text]} $text"; done | sort | while read -r -a of; do
        text=${of[-1]}
        printf '\n%s\n%s\n\n' "================================================================================" "Of: ${of[*]:0:${#of[@]}-1}"
        cat "$texts/$text"
    done
} >"$out/copyright"

mkdir -p "$out/licences"
for text in GPL-2 GPL-3 LGPL-2.1 LGPL-3; do cp "$root/usr/share/common-licenses/$text" "$out/licences/$text"; done
