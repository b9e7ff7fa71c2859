"""Live tests: root, real kernel, real peers. What is missing is an error here, never a skip."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def open_folder():
    """A folder that the user of the engine and the courier can enter, as pytest's own cannot be."""
    with tempfile.TemporaryDirectory(prefix="kwsiem-live-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def tmp_path(open_folder):
    return Path(tempfile.mkdtemp(dir=open_folder))


@pytest.fixture
def carry(tmp_path):
    """Makes a :class:`carrier.Carrier` from settings; all are closed in the end."""
    import carrier

    made = []

    def make(settings):
        made.append(carrier.Carrier(tmp_path, settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if any("live" in str(item.path) for item in items) and os.geteuid() != 0:
        raise pytest.UsageError("live tests need root; run: make test (or make unit for those that do not)")
