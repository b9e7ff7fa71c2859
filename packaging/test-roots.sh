#!/bin/sh
# Small Debian 13 and sid roots with their own bpftrace (0.23, 0.27) and libpam, for tests/live/test_probes.py. Root.
# Idempotent. The tests bind proc, sys and dev in for as long as they run.
#
#   packaging/test-roots.sh [FOLDER]        default: $KWSIEM_TEST_ROOTS, else /var/cache/kwsiem-test-roots
set -eu
folder=${1:-${KWSIEM_TEST_ROOTS:-/var/cache/kwsiem-test-roots}}
SUITES="trixie sid"
PACKAGES=bpftrace,libpam-modules,libpam-runtime,pamtester
# What the tests never call and maintainer scripts can do without.
EXCLUDE=tzdata,e2fsprogs,logsave,libss2

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }

# The first Debian archive that this host's own apt uses; Ubuntu hosts use Debian's own.
mirror() {
    found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        grep -v '^ *#' | grep -oE 'https?://[^ ]*/debian/?( |$)' | head -n 1 | tr -d ' ')
    printf '%s\n' "${found:-http://deb.debian.org/debian}"
}

build() {
    suite=$1
    root=$folder/$suite
    [ -e "$root.done" ] && return 0
    say "Debian $suite into $root"
    rm -rf --one-file-system "$root"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    # Signatures are checked where the host has Debian's keys; sid's may be newer than the host's keyring.
    [ -e "$keyring" ] && keys="--keyring=$keyring" || keys="--no-check-gpg"
    if ! debootstrap --variant=minbase $keys --include="$PACKAGES" --exclude="$EXCLUDE" "$suite" "$root" "$(mirror)" \
        >"$root.log" 2>&1; then
        tail -n 20 "$root.log" >&2
        echo "debootstrap of $suite failed; the whole log: $root.log" >&2
        return 1
    fi
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    touch "$root.done"
}

mkdir -p "$folder"
jobs=""
for suite in $SUITES; do
    build "$suite" &
    jobs="$jobs $!"
done
for job in $jobs; do wait "$job"; done
