#!/bin/sh
# syslog-ng and Prometheus for the tests and fail2ban for a benchmark, unpacked into folders of their own and
# never installed: Debian's rsyslog and syslog-ng-core exclude each other, fail2ban would begin to ban, and
# Prometheus would run as a service. Idempotent.
#
#   packaging/test-peers.sh [FOLDER]        default: $KWSIEM_TEST_PEERS, else /var/cache/kwsiem-test-peers
set -eu
folder=${1:-${KWSIEM_TEST_PEERS:-/var/cache/kwsiem-test-peers}}
root=$folder/fail2ban
if [ ! -e "$root.done" ]; then
    printf '\033[1m== %s\033[0m\n' "fail2ban into $root" >&2
    rm -rf --one-file-system "$root" "$folder/debs"
    mkdir -p "$root" "$folder/debs"
    (cd "$folder/debs" && apt-get download -qq fail2ban python3-pyinotify >/dev/null)
    for deb in "$folder"/debs/*.deb; do
        dpkg-deb --extract "$deb" "$root"
    done
    rm -rf "$folder/debs"
    touch "$root.done"
fi
root=$folder/prometheus
if [ ! -e "$root.done" ]; then
    printf '\033[1m== %s\033[0m\n' "Prometheus into $root" >&2
    rm -rf --one-file-system "$root" "$folder/debs"
    mkdir -p "$root" "$folder/debs"
    # Of what it depends on only the C library is needed to run it: its pages' scripts and styles are not.
    (cd "$folder/debs" && apt-get download -qq prometheus >/dev/null)
    dpkg-deb --extract "$folder"/debs/*.deb "$root"
    rm -rf "$folder/debs"
    "$root/usr/bin/promtool" --version >/dev/null
    touch "$root.done"
fi
root=$folder/syslog-ng
[ -e "$root.done" ] && exit 0
printf '\033[1m== %s\033[0m\n' "syslog-ng into $root" >&2
rm -rf --one-file-system "$root" "$folder/debs"
mkdir -p "$root" "$folder/debs"
# What syslog-ng-core needs beside what this host has: asked of apt, which leaves out what is installed.
cd "$folder/debs"
apt-get install --simulate --no-install-recommends -qq syslog-ng-core 2>/dev/null |
    awk '$1 == "Inst" { print $2 }' > wanted
# shellcheck disable=SC2046
apt-get download -qq $(cat wanted) >/dev/null
for deb in *.deb; do
    dpkg-deb --extract "$deb" "$root"
done
cd "$folder"
rm -rf "$folder/debs"
# Started through this, it finds its own libraries, modules and includes, and not those of the host.
cat > "$folder/run-syslog-ng" <<END
#!/bin/sh
root=$root
LD_LIBRARY_PATH=\$(find "\$root" -name '*.so*' -printf '%h:' | tr ':' '\n' | sort -u | paste -sd:)
export LD_LIBRARY_PATH
exec "\$root/usr/sbin/syslog-ng" --module-path "\$(dirname "\$(find "\$root" -name libsyslogformat.so)")" "\$@"
END
chmod 755 "$folder/run-syslog-ng"
"$folder/run-syslog-ng" --version >/dev/null
touch "$root.done"
