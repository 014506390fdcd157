#!/usr/bin/env bash
# Other kernels, for tests under qemu. A KERNEL is a series (6.1), with -rt if it is to be PREEMPT_RT, and with arm64/ in front
# if it is to be of that architecture, whose PROGRAM and FILEs must be linked statically:
#   kernel.sh fetch KERNEL             the newest Debian kernel of that series, into the cache
#   kernel.sh run KERNEL BOOTLINE PROGRAM FILE...
#       boots it and runs PROGRAM there, which is found with the FILEs where they are here, or as HERE:THERE says; its exit
#       status is PROGRAM's, 99 where the machine stopped without one. MQSPAN_TEST_GUEST=guest::links runs these tests only;
#       MQSPAN_TEST_CLOCK=instructions has the machine's clock count the instructions that it runs, a nanosecond each, on one
#       CPU of this host: no deadline in there passes because others keep this host busy. Its CPUs take turns, so that
#       guest::races, in which one changes what the other reads, fails
#   kernel.sh count KERNEL PROGRAM FILE...
#       the same on one CPU whose clock counts the instructions that it runs, a nanosecond each; PROGRAM is run once, as
#       `PROGRAM guest`
#   kernel.sh bench KERNEL BOOTLINE PROGRAM FILE...
#       boots it on two CPUs and runs PROGRAM once, as `PROGRAM guest`
# apt checks the signatures. A kernel with what it needs to boot is an initramfs of busybox: no disk, no network.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/mqspan/kernels
limit=${MQSPAN_TEST_BOOT_SECONDS:-3600} # for a boot with its tests, on a machine that does other work, too

# choose KERNEL: sets its series and what its architecture is run by
choose() {
    series=${1#arm64/}
    case $1 in
        arm64/*)
            arch=arm64
            qemu=(qemu-system-aarch64 -M virt -cpu "max,pauth-impdef=on")
            console=ttyAMA0
            ;;
        *)
            arch=amd64
            qemu=(qemu-system-x86_64 -M q35 -cpu max)
            console=ttyS0
            ;;
    esac
}

# Debian's suites that may have a series.
suites() {
    case ${1%-rt} in
        5.10) echo bullseye-security bullseye ;;
        6.1) echo bookworm-security bookworm ;;
        6.12) echo trixie-security trixie ;;
        *) echo trixie-backports sid ;;
    esac
}

# The archive that this machine gets its packages from.
archive() { sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources | grep -E "$1" | head -1; }

# apt ROOT SUITE TOOL ARGUMENT...: an apt tool with lists and a state of its own, for one suite
apt() {
    local root=$1 suite=$2 tool=$3 uri
    shift 3
    case $suite in
        *-security) uri=$(archive security) ;;
        *) uri=$(archive 'debian/?$') ;;
    esac
    mkdir -p "$root"/{lists/partial,cache/archives/partial,state,preferences}
    : >"$root/status"
    echo "deb [arch=$arch signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main" >"$root/sources.list"
    "$tool" -q -o APT::Architecture="$arch" -o APT::Architectures::="$arch" -o Dir::Etc::SourceList="$root/sources.list" \
        -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts="$root/preferences" \
        -o Dir::State="$root/state" -o Dir::State::Lists="$root/lists" -o Dir::State::status="$root/status" \
        -o Dir::Cache="$root/cache" -o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Sandbox::User=root \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}

fetch() {
    choose "$1"
    local version=${series%-rt} flavour=cloud folder=$cache/$series-$arch suite root package binary
    case $series in *-rt) flavour=rt ;; esac
    [ -s "$folder/vmlinuz" ] && return 0
    mkdir -p "$folder"
    for suite in $(suites "$version"); do
        root=$folder/apt-$suite
        apt "$root" "$suite" apt-get update >/dev/null || continue
        for package in $(apt "$root" "$suite" apt-cache pkgnames "linux-image-$version" |
            grep -E "^linux-image-${version//./\\.}([.-].*)?-$flavour-$arch\$" | sort -Vr); do
            # From 6.19 on the kernel is in a package of another name.
            binary=${package/linux-image/linux-binary}
            apt "$root" "$suite" apt-cache pkgnames "$binary" | grep -x "$binary" >/dev/null || binary=$package
            rm -rf "$folder/unpacked" && mkdir "$folder/unpacked"
            (cd "$folder/unpacked" && apt "$root" "$suite" apt-get download "$binary" >&2) || continue
            dpkg-deb -x "$folder/unpacked"/*.deb "$folder/unpacked/root"
            sha256sum "$folder/unpacked"/*.deb | sed 's#/.*/##' | tee "$folder/source"
            cp "$(find "$folder/unpacked/root" -name 'vmlinuz*' -type f | head -1)" "$folder/vmlinuz"
            rm -rf "$folder/unpacked" "$root"
            return 0
        done
        rm -rf "$root"
    done
    echo "kernel.sh: no kernel $1 for $arch" >&2
    return 1
}

# foreign: a folder with what a machine of another architecture has besides the FILEs, as Debian has it, with the libraries
# that it needs: busybox, and bpftool, which users reduce the kernel's types with.
foreign() {
    local folder=$cache/foreign-$arch
    if [ ! -d "$folder/root" ]; then
        rm -rf "$folder" && mkdir -p "$folder/unpacked"
        apt "$folder/apt" bookworm apt-get update >/dev/null
        apt "$folder/apt" bookworm apt-get install --yes --download-only --no-install-recommends busybox-static bpftool >&2
        for package in "$folder"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$folder/unpacked"; done
        mkdir "$folder/found"
        (cd "$folder/unpacked" && cp -a --parents bin/busybox usr/sbin/bpftool $(find lib usr/lib -maxdepth 2 -name '*.so*') "$folder/found")
        rm -rf "$folder/unpacked" "$folder/apt"
        mv "$folder/found" "$folder/root"
    fi
    echo "$folder/root"
}

# The libraries of programs; of another architecture they are linked statically, or find theirs in what is foreign.
libraries() { [ "$arch" = arm64 ] || ldd "$@" | grep -o '/[^ :]*' | sort -u; }

# Runs the tests of $program, one after the other; status is then whether they passed.
tests='
export MQSPAN_TEST_KINDS="${MQSPAN_TEST_KINDS:-fentry kprobe tracepoint}"
tests=$($program --ignored --list --format=terse --skip traced --skip guest::clean ${MQSPAN_TEST_GUEST:-guest::} | sed -n "s/: test\$//p")
status=0
dmesg -c >/dev/null
for test in $tests; do
    echo "TEST $test"
    verdict=ok
    $program --ignored --exact --nocapture $test || verdict=FAILED
    $program --ignored --exact --nocapture guest::clean::nothing_is_left || verdict=FAILED
    [ $verdict = ok ] || status=1
    echo "VERDICT $verdict $(cut -d" " -f1 /proc/uptime)"
done
[ -n "$tests" ] || status=2
'

# Runs $program once.
once='$program guest; status=$?'

# initramfs OUT SCRIPT PROGRAM FILE...: programs without their debug information, and the libraries that they need
initramfs() {
    local out=$1 script=$2 program=${3#*:} root file there
    shift 2
    root=$(mktemp -d)
    mkdir -p "$root"/{bin,dev,proc,sys,tmp}
    case $arch in
        amd64) cp "$(type -P busybox)" "$root/bin/busybox" ;;
        *) cp -a "$(foreign)"/. "$root" ;;
    esac
    for file in "$@" $(libraries "${@%%:*}"); do
        there=$root${file#*:}
        file=$(realpath "${file%%:*}")
        mkdir -p "$(dirname "$there")"
        # This machine's strip may know no other architecture.
        [ -e "$there" ] || strip --strip-debug -o "$there" "$file" 2>/dev/null || cp "$file" "$there"
    done
    cat >"$root/init" <<INIT
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/sbin:/usr/bin HOME=/tmp
echo UP
mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys
mount -t tracefs t /sys/kernel/tracing; mount -t debugfs d /sys/kernel/debug; mount -t cgroup2 c /sys/fs/cgroup
mount -t securityfs s /sys/kernel/security
mkdir /dev/mqueue; mount -t mqueue m /dev/mqueue
ip link set lo up
# The tests' preamble asks for these; no test in here uses them.
touch /bin/bash /bin/setpriv /bin/strace /bin/unshare
export MQSPAN_TEST_KINDS="${MQSPAN_TEST_KINDS:-}" MQSPAN_TEST_GUEST="${MQSPAN_TEST_GUEST:-}"
program=$program
$script
echo "EXIT \$status"
poweroff -f
INIT
    chmod +x "$root/init"
    (cd "$root" && find . -print0 | cpio --null -o -H newc --quiet | gzip -1) >"$out"
    rm -rf "$root"
}

# results KERNEL <LOG: a line for each test and kind of hooks. Of a test that fails the last kind that was begun is to blame.
results() {
    awk -v kernel="$1" -v OFS='\t' '
        /^TEST / { test = $2; kinds = 0 }
        /KIND [a-z]+$/ { kind[++kinds] = $NF }
        /^VERDICT / {
            if (!kinds) kind[++kinds] = "-"
            for (i = 1; i <= kinds; i++) print "RESULT", kernel, kind[i], test, i < kinds ? "ok" : $2
            test = ""
        }
        END { if (test) print "RESULT", kernel, kinds ? kind[kinds] : "-", test, "STOPPED" }'
}

# boot INITRAMFS LOG BOOT_LINE OPTION...: boots the chosen kernel; what the machine prints goes to stdout and to LOG
boot() {
    local initramfs=$1 log=$2 boot_line=$3
    shift 3
    # Emulated, a kernel dies once in a while as it comes up (seen: an int3 in run_timer_softirq of 7.3, while it unpacked the
    # initramfs). Once a program of ours may have run it counts. On a busy machine 5.10 finds no timer: it is not to look.
    for _ in 1 2 3; do
        timeout "$limit" "${qemu[@]}" "$@" -m 2560 -nodefaults -display none -no-reboot \
            -serial stdio -monitor none -kernel "$cache/$series-$arch/vmlinuz" -initrd "$initramfs" \
            -append "console=$console no_timer_check quiet loglevel=3 panic=-1 $boot_line" </dev/null | sed -u 's#\r$##' | tee "$log" || true
        if grep -q '^UP' "$log"; then break; fi
        echo "kernel.sh: Linux $series died before its first program ran: once more" >&2
    done
}

run() {
    local kernel=$1 boot_line=$2 work status clock=(-accel tcg,thread=multi)
    shift 2
    [ "${MQSPAN_TEST_CLOCK:-}" != instructions ] || clock=(-accel tcg,thread=single -icount shift=0,sleep=off)
    fetch "$kernel"
    work=$(mktemp -d)
    initramfs "$work/initramfs" "$tests" "$@"
    boot "$work/initramfs" "$work/log" "$boot_line" "${clock[@]}" -smp 2
    status=$(sed -n 's/^EXIT //p' "$work/log" | tail -1)
    results "$kernel $boot_line" <"$work/log" | tee -a "${MQSPAN_TEST_RESULTS:-/dev/null}"
    rm -rf "$work"
    return "${status:-99}"
}

count() { run_once "$1" "" "-accel tcg,thread=single -icount shift=0,sleep=off -smp 1" "${@:2}"; }

bench() { run_once "$1" "$2" "-accel tcg,thread=multi -smp 2" "${@:3}"; }

# run_once KERNEL BOOTLINE OPTIONS PROGRAM FILE...
run_once() {
    local kernel=$1 boot_line=$2 options=$3 work status
    shift 3
    fetch "$kernel"
    work=$(mktemp -d)
    initramfs "$work/initramfs" "$once" "$@"
    # shellcheck disable=SC2086 # options are words
    boot "$work/initramfs" "$work/log" "$boot_line" $options
    status=$(sed -n 's/^EXIT //p' "$work/log" | tail -1)
    rm -rf "$work"
    return "${status:-99}"
}

"$@"
