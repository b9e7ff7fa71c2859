#!/bin/sh
# The appliance with a real scan and a real brute force against it; root. State goes to a folder of its own.
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d /tmp/kwsiem-demo.XXXXXX)
chmod 755 "$folder"
cleanup() {
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    rm -rf "$folder"
}
.venv/bin/kwsiem run --state "$folder/state" --runtime "$folder/run" 2>"$folder/log" &
pid=$!
trap cleanup EXIT INT TERM
printf 'waiting for the probes'
until .venv/bin/kwsiem status --runtime "$folder/run" >"$folder/status" 2>/dev/null; do
    kill -0 "$pid" || { cat "$folder/log"; exit 1; }
    printf '.'
    sleep 0.5
done
printf '\n'
cat "$folder/status"
for scenario in portscan ssh-bruteforce; do
    printf '\n== kwsiem simulate %s\n' "$scenario"
    .venv/bin/kwsiem simulate "$scenario"
    sleep 2
done
printf '\n'
.venv/bin/kwsiem status --runtime "$folder/run" || true
alerts=$(grep -c '"alert"' "$folder/state/alerts.jsonl" || true)
printf '\n%s alerts in the file output\n' "$alerts"
[ "$alerts" -gt 0 ]
