#!/bin/sh
# All tests, or those that are named. The live tests mostly wait, so the unit tests run beside them, with less
# claim on the processor; what they said comes after. Exit 1 when either failed. Run as root.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ $# -eq 0 ] || exec $python -m pytest "$@"
said=$(mktemp)
trap 'rm -f "$said"' EXIT
nice -n 10 $python -m pytest tests/unit -p no:cacheprovider >"$said" 2>&1 &
unit=$!
trap 'kill $unit 2>/dev/null || true; rm -f "$said"' EXIT
live=0
$python -m pytest tests/live || live=$?
failed=0
wait $unit || failed=$?
trap 'rm -f "$said"' EXIT
cat "$said"
[ "$live" -eq 0 ] && [ "$failed" -eq 0 ]
