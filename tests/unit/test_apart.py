"""Work without rights keeps nothing of a terminal but the pen, and nothing silent happens in it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from kwsiem import rights
from kwsiem.apart import spawn, words_of
from kwsiem.errors import KwsiemError, UnavailableError
from kwsiem.secret import learn

#: What a process has of its terminal, as JSON on descriptor 9.
LOOK = """
import fcntl, json, os, sys, termios
from kwsiem import apart

def look(fds):
    found = {}
    for fd in fds:
        found[fd] = [os.isatty(fd), fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE]
        try:
            fcntl.ioctl(fd, termios.TIOCSTI, b"x")
            found["typed"] = fd
        except OSError:
            pass
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
        found["tty"] = True
    except OSError:
        pass
    found["uid"] = os.getuid()
    found["fds"] = [fd for fd in range(64) if os.path.exists(f"/proc/self/fd/{fd}")]
    print("seen", file=sys.stderr, flush=True)
    os.write(9, json.dumps(found).encode())
"""


def on_a_terminal(code):
    """What the code, run by the second process of a terminal's session, said on descriptor 9 and on it."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    pid, master = pty.fork()
    if pid == 0:
        os.dup2(writer, 9)
        argv = [sys.executable, "-c", LOOK + code]
        os.execv("/bin/sh", ["sh", "-c", '"$@"; exit $?', "sh", *argv])
    os.close(writer)
    with open(reader, "rb") as said:
        found = json.loads(said.read())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    shown = os.read(master, 4096).decode()
    os.close(master)
    return found, shown


@pytest.fixture(autouse=True)
def _root():
    if os.geteuid() != 0:
        pytest.fail("giving up rights needs them; run: sudo make test")


def test_a_process_apart_can_neither_read_nor_type_on_the_terminal():
    found, shown = on_a_terminal("""
secret = os.open("/etc/shadow", os.O_RDONLY)
pid = apart.spawn("nobody", lambda: look((0, 1, 2)), keep=(9,))
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
""")
    uid = rights.account("nobody").pw_uid
    assert found == {"0": [False, os.O_RDWR], "1": [False, os.O_RDWR], "2": [True, os.O_WRONLY], "uid": uid,
                     "fds": [0, 1, 2, 9]}  # fmt: skip
    assert shown == "seen\r\n"


def test_a_silent_one_has_nothing_of_it():
    found, shown = on_a_terminal("""
pid = apart.spawn("nobody", lambda: look((0, 1, 2)), keep=(9,), is_silent=True)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print("end")
""")
    assert found["2"] == [False, os.O_RDWR] and "tty" not in found
    assert shown == "end\r\n"


def test_who_gives_up_its_rights_for_good_keeps_the_pen():
    found, shown = on_a_terminal('apart.drop_here("nobody"); look((0, 1, 2))')
    assert found.pop("fds")
    uid = rights.account("nobody").pw_uid
    assert found == {
        "0": [False, os.O_RDWR], "1": [True, os.O_WRONLY], "2": [True, os.O_WRONLY], "uid": uid
    }  # fmt: skip
    assert shown == "seen\r\n"


def test_ctrl_c_still_ends_it():
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    pid, master = pty.fork()
    code = (
        f"import os, select\nfrom kwsiem import apart\napart.drop_here('nobody')\nos.write({writer}, b'.')\n"
        "try:\n    for _ in range(400): select.select([], [], [], 0.05)\nexcept KeyboardInterrupt:\n    os._exit(130)"
    )
    if pid == 0:
        os.execv("/bin/sh", ["sh", "-c", 'trap : INT; "$@"; exit $?', "sh", sys.executable, "-c", code])
    os.close(writer)
    assert os.read(reader, 1) == b"."
    os.close(reader)
    os.write(master, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    os.close(master)


@pytest.mark.parametrize("error", [KwsiemError, ZeroDivisionError, KeyboardInterrupt, MemoryError])
def test_whatever_goes_wrong_is_said_masked_and_clean(error):
    learn("a-secret-of-mine")
    reader, writer = os.pipe()

    def live():
        raise error("a-secret-of-mine \x1b[2J" + "A" * 5000)

    pid = spawn("nobody", live, keep=(writer,), failed=lambda e: os.write(writer, words_of(e).encode()))
    os.close(writer)
    with open(reader, "rb") as said:
        text = said.read().decode()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert "*** \ufffd[2JAAA" in text and len(text) < 1100 and "\x1b" not in text
    assert (error is KwsiemError) or (error.__name__ in text and "test_apart.py:" in text)


def test_it_is_logged_where_nobody_asks_for_it():
    code = "import os; from kwsiem.apart import spawn; os.waitpid(spawn('nobody', lambda: 1 / 0), 0)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "a process without rights has failed: ZeroDivisionError: division by zero" in done.stderr


def test_what_it_is_to_keep_must_not_be_a_standard_stream():
    with pytest.raises(UnavailableError, match="closed"):
        spawn("nobody", lambda: None, keep=(1,))
