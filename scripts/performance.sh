#!/usr/bin/env bash
# performance.sh: runs the benches and writes docs/performance.md; some minutes on a machine that does nothing else.
set -Eeuo pipefail

cd "$(dirname "$0")/.."
out=docs/performance.md
new=$(mktemp)
said=$(mktemp)
trap 'tail -5 "$said" >&2' ERR
as_root=(cargo)
[ "$(id -u)" = 0 ] || as_root+=(--config "target.'cfg(unix)'.runner = 'sudo -E'")

# section TITLE TEXT COMMAND...: what the command prints; what cargo and a failing command say is kept apart
section() {
    local title=$1 text=$2
    shift 2
    {
        printf '\n## %s\n\n%s\n\n```text\n$ %s\n' "$title" "$text" "$*"
        "$@" 2>"$said" | sed -e 's/[[:space:]]*$//' -e '/^UP$/d' -e '/^EXIT /d' -e '/^\[ *[0-9.]*\]/d' -e '/\.deb$/d'
        echo '```'
    } >>"$new"
}

{
    echo '# What mqspan costs'
    echo
    echo "Written by \`make bench\` on $(date +%F): Linux $(uname -r), $(nproc) CPUs,"
    echo "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -1). Times are of this machine and this hour: compare the ratios, which are"
    echo 'of one interleaved run each. Instructions are the same everywhere. What was aimed at, and what bounds it where it is'
    echo 'missed: [targets.md](targets.md).'
} >"$new"

section 'A call, in instructions' \
    'Under qemu a machine has one CPU whose clock counts the instructions that it runs. `empty` is to programs that do nothing on the same two hooks of each call; links by message identity need three more hooks a pair (`load_msg`, `store_msg`, `free_msg`), the time of insertion one (`msg_insert`).' \
    cargo bench --bench instructions
section 'A call, in time' \
    'By tracepoints, each call taken, into the ring and read: nothing is limited but in the last way. `to empty` is to programs that do nothing on the same tracepoints.' \
    "${as_root[@]}" bench --bench overhead
section 'A real-time thread' \
    'A SCHED_FIFO thread sends a message each millisecond on an isolated CPU of a PREEMPT_RT kernel: how late it is woken, and how long the send takes from then on. Emulated (TCG, whose two CPUs share those of this machine), these are orders of magnitude: compare the rows.' \
    cargo bench --bench latency
section 'What it holds, and how soon' \
    'The callers have the last CPU, mqspan and the receiver the others, or all of them all. What is lost is counted by mqspan itself. Start and end are those of a command that prints the time.' \
    "${as_root[@]}" bench --bench capacity
section 'mqspan itself, by stage' \
    'A batch is 1,000 calls: divide by as many. From the ring to OTLP bytes a call passes decode, links (by tracepoints) and encode; compression is on another thread.' \
    cargo bench --bench stages -- --noplot

mv "$new" "$out"
echo "performance.sh: $out is written"
