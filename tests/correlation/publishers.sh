#!/usr/bin/env bash
# publishers.sh FOLDER COMPILER...: builds publisher.c in each way that thread-local storage is reached, into a folder:
# publisher-WAY, and publisher-load, which loads the libpublisher-WAY.so that it is told.
set -euo pipefail

folder=$1
source=$(dirname "$0")/publisher.c
shift
build() { "${compiler[@]}" -O1 -o "$folder/$1" "$source" "${@:2}"; }
compiler=("$@")

# The dialects of a library's own storage: compilers for arm64 make descriptors if they are not told otherwise.
case $("$@" -dumpmachine) in
x86_64-*) ways=(initial-exec:-ftls-model=initial-exec tlsdesc:-mtls-dialect=gnu2 dtpmod:-mtls-dialect=gnu) ;;
*) ways=(initial-exec:-ftls-model=initial-exec tlsdesc:-fPIC) ;;
esac

mkdir -p "$folder"
build publisher-local-exec -DPUBLISHES -rdynamic
build publisher-fixed -DPUBLISHES -rdynamic -no-pie
build publisher-load
for way in "${ways[@]}"; do
    library=libpublisher-${way%%:*}.so
    build "$library" -DPUBLISHES -DLIBRARY -shared -fPIC "${way#*:}" "-Wl,-soname,$library"
    # shellcheck disable=SC2016
    build "publisher-${way%%:*}" -Wl,--no-as-needed "$folder/$library" '-Wl,-rpath,$ORIGIN'
done
