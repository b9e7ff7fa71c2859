"""The process that speaks HTTP never had the token in its memory, wherever that came from; it opens all the same."""

import http.client
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kwsiem.dashboard.token import FILE_NAME, NAME, folder_of

DEADLINE_S = 20


def memory(pid):
    """All that a process can read of itself, range by range."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            first, last, mode = re.match(r"(\w+)-(\w+) (....)", line).groups()
            if mode[0] == "r" and "[v" not in line:  # [vvar], [vsyscall]
                mem.seek(int(first, 16))
                yield mem.read(int(last, 16) - int(first, 16))


def log_in(port, token):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/login", f"token={token}", {"Origin": f"http://127.0.0.1:{port}"})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("source", ["env file", "its own file"])
def test_the_token_is_not_in_the_memory_of_who_speaks_http(tmp_path, source):
    if os.geteuid() != 0:
        pytest.fail("the dashboard needs root; run: sudo make test")
    token, other = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    state = tmp_path / "state"
    (tmp_path / "env").write_text(f"OTHER={other}\n" + (f"{NAME}={token}\n" if source == "env file" else ""))
    if source == "its own file":
        folder_of(state).mkdir(0o700)
        (folder_of(state) / FILE_NAME).write_text(token)
        (folder_of(state) / FILE_NAME).chmod(0o600)
    config = tmp_path / "kwsiem.yaml"
    config.write_text(
        f"state_dir: {state}\nruntime_dir: {tmp_path}\nenv_file: {tmp_path}/env\nuser: nobody\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [
        sys.executable,
        "-m",
        "kwsiem",
        "dashboard",
        "--config",
        str(config),
        "--listen",
        f"127.0.0.1:{port}",
    ]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        try:
            said = ""
            deadline_s = time.monotonic() + DEADLINE_S
            while "is served" not in said:
                assert process.poll() is None and time.monotonic() < deadline_s, said
                said += process.stderr.readline()
            child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
            held = [each for each in memory(child) if token.encode() in each or other.encode() in each]
            assert held == [], [len(each) for each in held]
            assert log_in(port, token) == 303
        finally:
            process.send_signal(signal.SIGTERM)
            said += process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == 0 and token not in said


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("env file", f"the secret {NAME} must have 20 to 1024 characters"),
        (
            "environment",
            f"{NAME}: must not stand in the environment; put it into the env file or a systemd credential",
        ),
    ],
)
def test_a_token_that_cannot_be_used_ends_both_and_says_why(tmp_path, place, why):
    if os.geteuid() != 0:
        pytest.fail("the dashboard needs root; run: sudo make test")
    config = tmp_path / "kwsiem.yaml"
    config.write_text(
        f"state_dir: {tmp_path}/s\nruntime_dir: {tmp_path}\nenv_file: {tmp_path}/e\nuser: nobody\n"
    )
    (tmp_path / "e").write_text(f"{NAME}=short\n" if place == "env file" else "")
    done = subprocess.run(
        [sys.executable, "-m", "kwsiem", "dashboard", "--config", str(config)],
        env={**os.environ, **({NAME: "x" * 40} if place == "environment" else {})},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 78
    assert done.stderr == f"kwsiem: {why}\n"
