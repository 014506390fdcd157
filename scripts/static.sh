#!/usr/bin/env bash
# Builds static programs, for x86_64 and arm64, on x86_64:
#   static.sh build ARCHITECTURE...       mqspan for amd64, arm64, and prints their paths:
#                                         target/package/mqspan-linux-ARCHITECTURE
#   static.sh cargo ARCHITECTURE ARG...   cargo ARG…, for other programs of this repository; what it makes is in
#                                         target/package/build/TARGET
#   static.sh kernels arm64               what tests/kernels.rs takes to a kernel of arm64, and prints the folder: kernels,
#                                         mqspan, workload, and workload-compat, a workload that is a 32-bit program; not
#                                         static are tests/correlation/publishers.sh's
#   static.sh root | crates               the folders that the programs are made from
# It is done in a root folder of Debian 12 with the sources at /src and the crates at /crates, both read-only: wherever it
# is built and by whom, the bytes are the same. Needs root for that folder; cargo runs as the user who asked.
set -euo pipefail

cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mqspan
out=$PWD/target/package

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -E)

say() { echo "static.sh: $*" >&2; }
usage() {
    sed -n '2,/^set/s/^# \?//p' "$0" >&2
    exit 2
}

target_of() {
    case $1 in
    amd64) echo x86_64-unknown-linux-gnu ;;
    arm64) echo aarch64-unknown-linux-gnu ;;
    armhf) echo armv7-unknown-linux-gnueabihf ;;
    *) usage ;;
    esac
}

# The compiler is Debian's: of the registries of packages only that one has Rust's own library for arm64. Packages of both
# architectures, since each is compiled for, and libelf's and zlib's, since both become part of the program. For 32-bit ARM it
# is built in another: Debian 12 has a library of Rust's for it only in its security updates, whose list for that
# architecture may lag behind.
root_folder() {
    case ${1:-} in
    armv7-*)
        "${as_root[@]}" scripts/root.sh trixie:release amd64,armhf ca-certificates cargo-web rustc-web clang-19 lld-19 llvm-19 \
            {libc6-dev,libgcc-14-dev,linux-libc-dev,libstd-rust-web-dev}:armhf
        ;;
    *)
        "${as_root[@]}" scripts/root.sh bookworm amd64,arm64 \
            ca-certificates cargo-web rustc-web clang-16 lld-16 llvm-16 make pkg-config libelf-dev zlib1g-dev \
            {libc6-dev,libgcc-12-dev,linux-libc-dev,libelf-dev,zlib1g-dev,libstd-rust-web-dev}:arm64
        ;;
    esac
}

# As Cargo.lock has them; a mirror that this machine is configured for may bring them.
crates_folder() {
    local crates fetching
    crates=$cache/crates-$(sha256sum Cargo.lock | cut -c1-12)
    if [ ! -d "$crates" ]; then
        say "fetching the crates of Cargo.lock"
        mkdir -p "$cache"
        fetching=$(mktemp -d "$cache/fetching.XXXXXX")
        cargo vendor --quiet --locked --respect-source-config --versioned-dirs "$fetching/crates" >/dev/null
        mv "$fetching/crates" "$crates"
        rm -r "$fetching"
    fi
    echo "$crates"
}

# Runs in a mount namespace of its own.
# shellcheck disable=SC2016
inside='
set -euo pipefail
root=$1 source=$2 crates=$3 build=$4 owner=$5 target=$6 commit=$7
shift 7
mkdir -p "$root"/{src,crates,build}
mount --make-rprivate /
mount --bind "$source" "$root/src" && mount -o remount,bind,ro "$root/src"
mount --bind "$crates" "$root/crates" && mount -o remount,bind,ro "$root/crates"
mount --bind "$build" "$root/build"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
# For all, whichever is built: what is compiled for the build itself would be compiled anew for the other.
settings=()
for each in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu armv7-unknown-linux-gnueabihf; do
    name=${each//-/_}
    flags="-C target-feature=+crt-static -C strip=symbols -C link-arg=--target=$each -C link-arg=-fuse-ld=lld"
    # Addresses that the start has to correct take 8 bytes for 64 of them, not 24 each.
    flags+=" -C link-arg=-Wl,-z,pack-relative-relocs"
    settings+=("CC_$name=clang" "AR_$name=llvm-ar" "CARGO_TARGET_${name^^}_LINKER=clang" "CARGO_TARGET_${name^^}_RUSTFLAGS=$flags"
        "LIBBPF_SYS_LIBRARY_PATH_$name=/usr/lib/${each/unknown-/}")
done
exec env -i PATH=/usr/lib/llvm-16/bin:/usr/lib/llvm-19/bin:/usr/sbin:/usr/bin HOME=/tmp LC_ALL=C.UTF-8 \
    CARGO_HOME=/tmp/cargo CARGO_TARGET_DIR=/build CARGO_BUILD_TARGET="$target" CARGO_NET_OFFLINE=true MQSPAN_COMMIT="$commit" \
    "${settings[@]}" \
    chroot --userspec="$owner" --groups= "$root" sh -c "cd /src && exec \"\$@\"" in_root "$@"
'

# in_root TARGET COMMAND...
in_root() {
    local target=$1 root crates commit
    shift
    root=$(root_folder "$target")
    crates=$(crates_folder)
    commit=${MQSPAN_COMMIT:-$(git describe --always --abbrev=40 --exclude='*' --dirty=-modified 2>/dev/null || echo unknown)}
    mkdir -p "$out/build"
    "${as_root[@]}" unshare --mount bash -c "$inside" inside \
        "$root" "$PWD" "$crates" "$out/build" "$(id -u):$(id -g)" "$target" "$commit" "$@"
}

# cargo_in_root TARGET ARGUMENT...
cargo_in_root() {
    in_root "$1" cargo --config source.crates-io.replace-with='"fetched"' --config source.fetched.directory='"/crates"' "${@:2}"
}

# kernels ARCHITECTURE FOLDER: as tests are built, which takes no time for making programs small
kernels() {
    local target folder=$2 program
    target=$(target_of "$1")
    program=$(cargo_in_root "$target" test --locked --no-run --package mqspan --test kernels --features static \
        --message-format=json-render-diagnostics | sed -n 's#.*"executable":"/build/\([^"]*/kernels-[0-9a-f]*\)".*#\1#p')
    cargo_in_root "$target" build --locked --package workload >&2
    cargo_in_root "$(target_of armhf)" build --locked --package workload >&2
    in_root "$target" tests/correlation/publishers.sh /build/publishers clang --target="$target" -fuse-ld=lld
    mkdir -p "$folder"
    install -m 0755 "$out/build/$program" "$folder/kernels"
    install -m 0755 "$out/build/$target/debug"/{mqspan,workload} "$out"/build/publishers/* "$folder"
    install -m 0755 "$out/build/$(target_of armhf)/debug/workload" "$folder/workload-compat"
    echo "$folder"
}

[ $# -gt 0 ] || usage
command=$1
shift
case $command in
root) root_folder ;;
crates) crates_folder ;;
cargo)
    [ $# -gt 1 ] || usage
    target=$(target_of "$1")
    cargo_in_root "$target" "${@:2}" >&2
    ;;
kernels)
    [ "$*" = arm64 ] || usage
    kernels arm64 "$out/kernels-arm64"
    ;;
build)
    [ $# -gt 0 ] || usage
    for architecture in "$@"; do
        target=$(target_of "$architecture")
        say "building for $architecture, some minutes the first time"
        cargo_in_root "$target" build --release --locked --package mqspan --features static >&2
        install -m 0755 "$out/build/$target/release/mqspan" "$out/mqspan-linux-$architecture"
        echo "$out/mqspan-linux-$architecture"
    done
    ;;
*) usage ;;
esac
