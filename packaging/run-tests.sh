#!/bin/sh
# All tests, or those that are named, in two lanes at the same time. Both mostly wait, so two processors are enough.
# The first lane is the live tests of the appliance and the probes, in sequence: PAM, the kernel's tracing and its
# losses belong to the whole machine, so two of them would see each other. The second lane, with less claim on the
# processor, is the unit tests and after them the live tests named in "beside". What it said comes after what the
# first one said. A live test file that is not named is in the first lane. Exit 1 when either failed. Run as root.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ $# -eq 0 ] || exec $python -m pytest "$@"
# Only what starts no probe, logs nobody in, and waits for conditions, so that a busy machine cannot change what
# comes out: outputs against their receivers, the courier on disks and over links, and the firewall in namespaces.
beside="
    tests/live/test_black_hole.py
    tests/live/test_courier_syslog.py
    tests/live/test_disk_full.py
    tests/live/test_faults.py
    tests/live/test_firewall.py
    tests/live/test_history.py
    tests/live/test_receivers.py
    tests/live/test_rsyslog.py
    tests/live/test_syslog_ng.py
"
alone=
for file in $beside; do alone="$alone --ignore=$file"; done
said=$(mktemp)
trap 'rm -f "$said"' EXIT
nice -n 10 $python -m pytest tests/unit $beside -p no:cacheprovider >"$said" 2>&1 &
second=$!
trap 'kill $second 2>/dev/null || true; rm -f "$said"' EXIT
first=0
$python -m pytest tests/live $alone || first=$?
failed=0
wait $second || failed=$?
trap 'rm -f "$said"' EXIT
cat "$said"
[ "$first" -eq 0 ] && [ "$failed" -eq 0 ]
