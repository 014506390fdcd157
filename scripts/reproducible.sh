#!/usr/bin/env bash
# reproducible.sh: builds the packages of the last commit in a second folder, by another name, and compares them with those in
# target/package, which it builds where they are missing. The cache is shared, what is built is not.
set -euo pipefail

cd "$(dirname "$0")/.."
[ -z "$(git status --porcelain)" ] || {
    echo "reproducible.sh: there are changes that are not committed: the copy would lack them" >&2
    exit 1
}
scripts/package.sh >/dev/null
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git clone --quiet . "$copy/elsewhere"
(cd "$copy/elsewhere" && umask 077 && scripts/package.sh >/dev/null)
diff target/package/SHA256SUMS "$copy/elsewhere/target/package/SHA256SUMS"
echo "reproducible.sh: the same bytes in both folders:"
cat target/package/SHA256SUMS
