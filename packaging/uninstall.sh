#!/bin/sh
# Removes what install.sh installed. Settings, rules and state stay unless --purge is given. Run as root.
set -eu
[ "$(id -u)" -eq 0 ] || { echo "uninstall.sh needs root" >&2; exit 69; }
prefix=${KWSIEM_PREFIX:-/opt/kwsiem}

if [ -d /run/systemd/system ]; then
    systemctl disable --now kwsiem-dashboard.service kwsiem.service 2>/dev/null || true
fi
# Blocks outlive the service on purpose; without kwsiem nobody would look after them.
if [ -x "$prefix/bin/python" ]; then
    "$prefix/bin/python" -c 'from kwsiem.response.detect import detect; detect("auto").close(remove=True)' 2>/dev/null || true
fi
rm -f /etc/systemd/system/kwsiem.service /etc/systemd/system/kwsiem-dashboard.service /usr/local/bin/kwsiem
[ -x "$prefix/bin/kwsiem" ] && rm -rf "$prefix"
if [ "${1:-}" = "--purge" ]; then
    rm -rf /etc/kwsiem /var/lib/kwsiem /var/lib/kwsiem-blocks /var/lib/kwsiem-dashboard /var/log/kwsiem /run/kwsiem
    if getent passwd kwsiem >/dev/null; then userdel kwsiem; fi
    echo "kwsiem, its settings and its state are gone"
else
    echo "kwsiem is gone; settings and state stay in /etc/kwsiem and /var/lib/kwsiem (--purge removes them)"
fi
