"""Stages do not know each other; leaves know no stage; only composition roots import stages."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kwsiem"
#: Stages by package or module, and which other stage each may know (the record or model it is built on).
STAGES = {
    "sensor": set(),
    "decode": set(),
    "rules": {"correlate"},  # rules.testing runs a rule's own tests through the real engine
    "correlate": {"rules.model", "rules.duration"},
    "formats": set(),
    "outbox": set(),
    "outputs": {"outbox"},
    "response": set(),
}
ROOTS = {"appliance", "blocking", "engine", "courier", "dashboard", "delivery", "replay", "cli", "__main__"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kwsiem"):
            base = node.module.removeprefix("kwsiem").removeprefix(".")
            found.update(f"{base}.{alias.name}".strip(".") for alias in node.names)
            if base:
                found.add(base)
        elif isinstance(node, ast.Import):
            found.update(a.name.removeprefix("kwsiem.") for a in node.names if a.name.startswith("kwsiem."))
    return found


def stage_of(module: str) -> str | None:
    first = module.split(".", maxsplit=1)[0]
    return first if first in STAGES else None


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_what_it_may(path):
    module = name_of(path)
    if module.split(".")[0] in ROOTS:
        return
    own = stage_of(module)
    for imported in imports(path):
        stage = stage_of(imported)
        if stage is None or stage == own:
            assert imported.split(".")[0] not in ROOTS, f"{module} imports the composition root {imported}"
            continue
        assert own is not None, f"leaf {module} imports stage {imported}"
        allowed = STAGES[own]
        assert any(imported == a or imported.startswith(a + ".") for a in allowed), (
            f"{module} imports {imported}"
        )


def test_only_the_clock_module_reads_clocks():
    for path in modules():
        if name_of(path) == "clock":
            continue
        names = [
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        ]
        assert "time" not in names, f"{path} imports time; use kwsiem.clock"


def test_nothing_calls_a_shell():
    for path in modules():
        text = path.read_text()
        assert "shell=True" not in text, path
        assert "os.system" not in text, path
