"""Points where the courier can be killed: which there are, what is refused, and that the nth time counts."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kwsiem import failpoint
from kwsiem.errors import EXIT_CONFIG, ConfigError

PACKAGE = Path(failpoint.__file__).parent
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"
REACH = """
import os, sys
from kwsiem import failpoint
failpoint.arm(os.environ)
for turn in range(1, 6):
    failpoint.reach("worker.sent")
    failpoint.reach("worker.half_sent", lambda: os.write(1, b"half"))
    os.write(1, b"%d" % turn)
"""


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoint.arm({})


def run(value):
    environment = {failpoint.VARIABLE: value} if value else {}
    return subprocess.run([sys.executable, "-c", REACH], env=environment, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("value", "said", "killed"),
    [
        ("", b"12345", False),
        ("worker.sent", b"", True),
        ("worker.sent:3", b"12", True),
        ("worker.sent:6", b"12345", False),
        ("worker.half_sent:2", b"1half", True),
        ("outbox.stored", b"12345", False),
    ],
)
def test_the_process_is_killed_at_the_nth_time(value, said, killed):
    done = run(value)
    assert done.stdout == said
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr


@pytest.mark.parametrize(
    "value", ["worker.gone", "worker.sent:0", "worker.sent:x", "worker.sent:-1", ":3", "²"]
)
def test_what_is_not_a_point_is_an_error_that_names_the_points(value):
    with pytest.raises(ConfigError, match=r"worker\.half_sent"):
        failpoint.arm({failpoint.VARIABLE: value})


def test_the_courier_refuses_to_start_with_an_unknown_point():
    argv = [sys.executable, "-I", "-m", "kwsiem.courier", "--sensor-fd", "0", "--alerts-fd", "0"]
    environment = {**os.environ, failpoint.VARIABLE: "courier.gone:1"}
    done = subprocess.run(argv, env=environment, capture_output=True, check=False, timeout=30)
    assert done.returncode == EXIT_CONFIG
    assert b"courier.gone:1" in done.stderr


def test_every_point_stands_once_in_the_code_and_in_the_architecture():
    code = "".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "failpoint.py")
    assert sorted(re.findall(r'failpoint\.reach\("([\w.]+)"', code)) == sorted(failpoint.POINTS)
    table = dict(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| (.*) \|$", ARCHITECTURE.read_text(), re.MULTILINE))
    assert {name: table.get(name) for name in failpoint.POINTS} == dict(failpoint.POINTS)
