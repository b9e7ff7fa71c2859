"""What the tests of blocking share."""

import pytest
from blocker_host import Host


@pytest.fixture
def host(tmp_path, monkeypatch):
    found = Host(tmp_path, monkeypatch.setattr)
    yield found
    found.stop()


@pytest.fixture(scope="session")
def make_host():
    """For tests that need a new one for each example."""
    return lambda folder, monkeypatch: Host(folder, monkeypatch.setattr)
