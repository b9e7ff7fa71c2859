"""The control socket: one line in, one line out, whatever the line."""

import threading

import pytest

from kwsiem.control import ControlServer, ask
from kwsiem.errors import UnavailableError


@pytest.fixture
def server(tmp_path):
    made = ControlServer(tmp_path / "c.sock", lambda request: {"echo": request})
    made._socket.setblocking(True)
    yield made
    made.close()


def serve(server):
    thread = threading.Thread(target=server.serve)
    thread.start()
    return thread


def test_an_answer_comes_back(server):
    thread = serve(server)
    assert ask(server._path, {"command": "x"}) == {"echo": {"command": "x"}}
    thread.join()


def test_only_the_owner_may_ask(server):
    assert server._path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("line", [b"\n", b"{}", b"[1]\n", b"\xff\n", b"x" * 100_000])
def test_a_bad_request_gets_an_error_and_harms_nothing(server, line):
    import socket

    thread = serve(server)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(server._path))
        client.settimeout(5)
        try:
            client.sendall(line)
            answer = client.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        assert answer == b"" or b"error" in answer or b"echo" in answer
    thread.join()
    thread = serve(server)
    assert ask(server._path, {"command": "x"}) == {"echo": {"command": "x"}}
    thread.join()


def test_nobody_there_is_unavailable_with_advice(tmp_path):
    with pytest.raises(UnavailableError, match=r"not running.*kwsiem run"):
        ask(tmp_path / "none.sock", {})
