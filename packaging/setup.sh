#!/bin/sh
# Sets up everything kwsiem needs on a fresh Debian or Ubuntu: system packages, tracefs, and the virtual
# environment .venv with the command kwsiem. Idempotent: run again, it installs only what is missing.
#
#   packaging/setup.sh              what running needs
#   packaging/setup.sh --test       and what the tests need (nmap, hydra, sshd, rsyslog, other bpftrace versions …)
#   packaging/setup.sh --scoreboard and what `make scoreboard` needs (wrk, dnsperf, unbound, slowhttptest …)
set -eu
cd "$(dirname "$0")/.."

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }

RUN_PACKAGES="bpftrace ipset iptables iproute2 python3 python3-venv"
TEST_PACKAGES="sec nmap hydra hping3 openssh-server openssh-client sshpass rsyslog rsyslog-relp rsyslog-openssl
    libfaketime liblognorm-utils openssl procps util-linux curl nginx-light
    libpam-modules debootstrap chromium chromium-driver"

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

install_packages() {
    missing=""
    for package in "$@"; do
        status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
        case "$status" in
            *"ok installed"*) ;;
            *) missing="$missing $package" ;;
        esac
    done
    [ -z "$missing" ] && return 0
    say "installing$missing"
    as_root apt-get update -qq
    # No service is started by installing it: the tests start their own.
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing
}

mount_tracefs() {
    if [ ! -d /sys/kernel/tracing/events ]; then
        say "mounting tracefs"
        as_root mount -t tracefs tracefs /sys/kernel/tracing
    fi
}

# The newest python3 that is new enough; the system's own first.
find_python() {
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11 python3.10; do
        path=$(command -v "$candidate" 2>/dev/null) || continue
        if "$path" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$path"
            return 0
        fi
    done
    echo "kwsiem needs Python 3.10 or newer with venv: apt-get install python3 python3-venv" >&2
    return 69
}

make_environment() {
    lock=$1
    stamp=.venv/installed-$(basename "$lock")
    wanted=$(cat "$lock" pyproject.toml | sha256sum)
    [ -x .venv/bin/kwsiem ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return 0
    say "Python packages of $lock into .venv"
    [ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
    printf '%s\n' "$wanted" > "$stamp"
}

# shellcheck disable=SC2086
install_packages $RUN_PACKAGES
mount_tracefs
if [ "${1:-}" = "--test" ] || [ "${1:-}" = "--scoreboard" ]; then
    # shellcheck disable=SC2086
    install_packages $TEST_PACKAGES
    make_environment packaging/requirements-test.lock
    as_root packaging/test-roots.sh
    as_root packaging/test-peers.sh
    if [ "$1" = "--scoreboard" ]; then
        install_packages git
        as_root packaging/scoreboard-tools.sh
    fi
else
    make_environment packaging/requirements.lock
fi
