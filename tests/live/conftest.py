"""Live tests: root, real kernel, real peers. What is missing is an error here, never a skip."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if any("live" in str(item.path) for item in items) and os.geteuid() != 0:
        raise pytest.UsageError("live tests need root; run: make test (or make unit for those that do not)")
