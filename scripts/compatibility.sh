#!/usr/bin/env bash
# compatibility.sh RESULTS: docs/compatibility.md on stdout, from what `make test-kernels` or `make test-kernels-all` left
# (target/kernels.tsv): each kernel with its package, and each test by each kind of hooks.
set -euo pipefail

results=$1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mqspan/kernels

# folder KERNEL: where scripts/kernel.sh keeps it
folder() {
    case $1 in
        arm64/*) echo "$cache/${1#arm64/}-arm64" ;;
        *) echo "$cache/$1-amd64" ;;
    esac
}

echo "# Compatibility"
echo
echo "What the tests of \`tests/kernels/guest/\` showed on other kernels than the one of \`make test\`, under qemu (TCG, 2 CPUs),"
echo "x86_64 where it is not said otherwise. Made by \`scripts/compatibility.sh\` from a run that ended on"
echo "$(date -u -r "$results" +%F); nothing is written by hand. A kernel or a test that is not here was not run."
echo "After each test the kernel's log has to be without BUG, WARNING, stall and taint, and nothing may stay attached."
echo "\`ok\` and \`FAILED\` are the tests' own verdicts, \`STOPPED\`: the machine ended, or was ended, in it; \`-\`: a test that does not"
echo "ask for that kind by its name, or that ended before."
echo
echo "| kernel | booted with | package |"
echo "|---|---|---|"
cut -f2 "$results" | sort -uV | while read -r kernel boot_line; do
    echo "| $kernel | ${boot_line:+\`$boot_line\`} | $(cut -d' ' -f3 "$(folder "$kernel")/source") |"
done
cut -f2 "$results" | sort -uV | while IFS= read -r kernel; do
    echo
    echo "## ${kernel% }"
    echo
    awk -F'\t' -v kernel="$kernel" '
        $2 == kernel {
            if (!($4 in known)) { known[$4] = 1; test[++tests] = $4 }
            verdict[$4, $3] = $5
        }
        function of(test, kind) { return (test, kind) in verdict ? verdict[test, kind] : "-" }
        END {
            print "| test | fentry | kprobe | tracepoint | as chosen |"
            print "|---|---|---|---|---|"
            for (i = 1; i <= tests; i++) {
                chosen = of(test[i], "auto")
                if (chosen == "-") chosen = of(test[i], "-")
                name = test[i]
                sub(/^guest::/, "", name)
                print "| " name " | " of(test[i], "fentry") " | " of(test[i], "kprobe") " | " of(test[i], "tracepoint") " | " chosen " |"
            }
        }' "$results"
done
