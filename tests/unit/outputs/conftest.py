"""Small receivers on real sockets that several outputs' tests share."""

import select
import socket
from pathlib import Path

import pytest
from peers.certificates import Certificates

from kwsiem.outputs.base import Rendered

TIMEOUT_S = 5.0


def _alerts(*texts):
    return [Rendered(text[:40], 5, text.encode()) for text in texts]


@pytest.fixture(scope="session")
def alerts():
    """Alerts whose data are the texts."""
    return _alerts


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """Made once: keys cost time."""
    return Certificates(Path(tmp_path_factory.mktemp("pki")))


@pytest.fixture
def server():
    """A listening TCP socket."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(TIMEOUT_S)
        yield listening


@pytest.fixture
def accept(server):
    """Takes the next connection."""
    connections = []

    def take():
        connection, _ = server.accept()
        connection.settimeout(TIMEOUT_S)
        connections.append(connection)
        return connection

    yield take
    for connection in connections:
        connection.close()


@pytest.fixture(scope="session")
def wait_end():
    """Waits until the kernel has told a socket that the other side closed."""

    def wait(sock):
        poller = select.poll()
        poller.register(sock, 0x2000 | select.POLLHUP | select.POLLERR)
        assert poller.poll(5000)

    return wait
