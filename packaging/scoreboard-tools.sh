#!/bin/sh
# The programs that only `make scoreboard` and `make bench` need, unpacked into a folder of their own and never installed: no service
# starts, and chrony does not put out the host's own time service. Idempotent.
#
#   packaging/scoreboard-tools.sh [FOLDER]      default: $KWSIEM_SCOREBOARD_TOOLS, else /var/cache/kwsiem-scoreboard
#
# FOLDER/run PROGRAM ARGUMENTS… starts one of them with its own libraries.
set -eu
folder=${1:-${KWSIEM_SCOREBOARD_TOOLS:-/var/cache/kwsiem-scoreboard}}
PACKAGES="wrk iperf3 apache2-utils slowhttptest dnsperf unbound iodine redis-server rsync chrony iputils-ping"
root=$folder/root
stamp=$(sha256sum <"$0")
[ "$(cat "$folder/done" 2>/dev/null)" = "$stamp" ] && exit 0
printf '\033[1m== %s\033[0m\n' "$PACKAGES into $root" >&2
rm -rf --one-file-system "$root" "$folder/debs"
mkdir -p "$root" "$folder/debs"
cd "$folder/debs"
apt-get update -qq
# What each needs beside what this host has: asked of apt. Upgrades of what is installed (a version in brackets) are
# left out; of those that exclude each other each is asked alone.
for package in $PACKAGES; do
    printf '%s\n' "$package"
    apt-get install --simulate --no-install-recommends -qq "$package" 2>/dev/null |
        awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }'
done | sort -u >wanted
# shellcheck disable=SC2046
apt-get download -qq $(cat wanted) >/dev/null
for deb in *.deb; do
    dpkg-deb --extract "$deb" "$root"
done
for package in $PACKAGES; do
    dpkg-deb --show --showformat '${Package} ${Version}\n' "$package"_*.deb
done >"$folder/versions"
cd "$folder"
rm -rf "$folder/debs"
cat >"$folder/run" <<END
#!/bin/sh
root=$root
PATH=\$root/usr/sbin:\$root/usr/bin:\$root/bin:\$root/sbin:/usr/sbin:/usr/bin:/sbin:/bin
LD_LIBRARY_PATH=$(find "$root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
export PATH LD_LIBRARY_PATH
exec "\$@"
END
chmod 755 "$folder/run"
for program in wrk iperf3 ab slowhttptest dnsperf unbound iodine iodined redis-server rsync chronyd ping; do
    "$folder/run" sh -c "command -v $program" >/dev/null || { echo "$program is missing in $root" >&2; exit 1; }
done
printf '%s\n' "$stamp" >"$folder/done"
