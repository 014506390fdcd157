#!/usr/bin/env bash
# machine.sh ROOT PACKAGES PROGRAM ARGUMENT...: runs PROGRAM as the first process of a machine of its own, and waits for its
# end: a root folder that it may write to, over ROOT, which stays as it is, and processes, queues, a name and control groups
# of its own. The folder PACKAGES is at /packages; /sys/kernel/tracing is the host's. Prints the id of the process whose one
# child PROGRAM is; on SIGTERM both are killed. Needs root and busybox.
set -euo pipefail

start() {
    local group parent status=0
    mount --make-rprivate /
    # The unified hierarchy only: systemd of Debian 13 wants no other.
    mount -t cgroup2 cgroup2 /mnt
    group=/mnt/mqspan-machine-$$
    mkdir "$group"
    (
        echo "$BASHPID" >"$group/cgroup.procs"
        exec unshare --mount --uts --ipc --pid --cgroup --fork --kill-child "$0" inside "$@" >&2
    ) &
    parent=$!
    trap 'kill -KILL "$parent"' TERM
    echo "$parent"
    # A signal ends the wait early.
    while kill -0 "$parent" 2>/dev/null; do wait "$parent" || status=$?; done
    find "$group" -depth -type d -exec rmdir {} +
    return $status
}

inside() {
    local lower=$1 packages=$2 root=/mnt/root variable
    shift 2
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t overlay -o "lowerdir=$lower,upperdir=/mnt/upper,workdir=/mnt/work" overlay "$root"
    mkdir -p "$root"/{packages,proc,sys,dev,run,tmp,mnt}
    mount -o bind,ro "$packages" "$root/packages"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount --bind /sys/kernel/tracing "$root/sys/kernel/tracing"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for node in null zero full random urandom tty; do
        touch "$root/dev/$node"
        mount --bind "/dev/$node" "$root/dev/$node"
    done
    mkdir "$root"/dev/{pts,shm,mqueue}
    mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    mount -t tmpfs tmpfs "$root/dev/shm"
    mount -t mqueue mqueue "$root/dev/mqueue"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs tmpfs "$root/tmp"
    hostname machine
    cd "$root"
    pivot_root . mnt
    # The host's, which needs no library: a root may have no program of its own for it.
    /mnt/bin/busybox umount -l /mnt
    for variable in $(compgen -e); do unset "$variable"; done
    export container=machine PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb LC_ALL=C
    exec "$@"
}

case $1 in
inside) inside "${@:2}" ;;
start) start "${@:2}" ;;
*) exec unshare --mount "$0" start "$@" ;;
esac
