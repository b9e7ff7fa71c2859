#!/bin/sh
# Installs kwsiem as a service on Debian or Ubuntu: /opt/kwsiem (program), /etc/kwsiem (settings, rules),
# /var/lib/kwsiem (state). Idempotent; never overwrites settings or rules that are there. Run as root.
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" -eq 0 ] || { echo "install.sh needs root" >&2; exit 69; }
prefix=${KWSIEM_PREFIX:-/opt/kwsiem}

packaging/setup.sh
if ! getent passwd kwsiem >/dev/null; then
    useradd --system --home-dir /var/lib/kwsiem --shell /usr/sbin/nologin --user-group kwsiem
fi
python=$(.venv/bin/python -c 'import sys; print(sys._base_executable)')
[ -x "$prefix/bin/python" ] || "$python" -m venv "$prefix"
"$prefix/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
    -r packaging/requirements.lock
"$prefix/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --force-reinstall .
install -d -m 0755 /etc/kwsiem /etc/kwsiem/probes.d /etc/kwsiem/rules.d
[ -e /etc/kwsiem/kwsiem.yaml ] || install -m 0644 packaging/kwsiem.yaml /etc/kwsiem/kwsiem.yaml
[ -e /etc/kwsiem/rules.yaml ] || install -m 0644 rules.yaml /etc/kwsiem/rules.yaml
[ -e /etc/kwsiem/env ] || install -m 0600 packaging/env.example /etc/kwsiem/env
install -d -m 0750 -o kwsiem -g kwsiem /var/lib/kwsiem
ln -sfn "$prefix/bin/kwsiem" /usr/local/bin/kwsiem
install -m 0644 packaging/kwsiem.service packaging/kwsiem-dashboard.service /etc/systemd/system/
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable kwsiem.service
    echo "installed; look with: kwsiem doctor; start it with: systemctl start kwsiem"
    echo "the dashboard on 127.0.0.1:9470, if you want it: systemctl enable --now kwsiem-dashboard"
else
    echo "installed; systemd does not run here, start it with: kwsiem run"
fi
