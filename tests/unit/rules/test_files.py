"""rules.yaml and rules.d: which files are read, and following them through every way they can change."""

import os
from pathlib import Path

import pytest

from kwsiem.errors import ConfigError
from kwsiem.rules import files
from kwsiem.rules.files import files_of, read_rule_files, signature_of
from kwsiem.rules.watch import RuleFiles
from kwsiem.sensor.catalog import read_catalog

KINDS = read_catalog([Path(__file__).parents[3] / "probes"]).kinds()
RULE = """  - id: {}
    title: T
    level: low
    event: tcp.syn
    detection: {{a: {{destination.port: 1}}, condition: a}}
"""


def own(*names: str) -> str:
    return "version: 1\nrules:\n" + "".join(RULE.format(name) for name in names) + ("" if names else "  []\n")


@pytest.fixture
def main(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(own("main"))
    return path


@pytest.fixture
def folder(main):
    made = main.parent / "rules.d"
    made.mkdir()
    return made


def names(path) -> list[str]:
    return [file.name for file in files_of(path, path.parent / "rules.d")]


def test_only_rule_files_count_in_order(main, folder):
    for name in ("b.yml", "a.yaml", ".hidden.yml", "c.yml~", ".c.yml.swp", "4913", "README.md"):
        (folder / name).write_text("")
    assert names(main) == ["rules.yaml", "a.yaml", "b.yml"]


def test_every_file_that_cannot_be_read_is_named(main, folder):
    (folder / "a.yml").mkdir()
    os.mkfifo(folder / "b.yml")
    (folder / "c.yml").symlink_to("nowhere")
    with pytest.raises(ConfigError) as error:
        read_rule_files(main, main.parent / "rules.d")
    assert [line.split(": ")[0].rpartition("/")[2] for line in str(error.value).split("\n")] == [
        "a.yml", "b.yml", "c.yml",
    ]  # fmt: skip


def test_files_and_bytes_are_bounded_together(main, folder, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILES", 2)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 300)
    for name in ("a.yml", "b.yml"):
        (folder / name).write_text("#" * 200)
    with pytest.raises(ConfigError, match="together have more than 300 bytes"):
        read_rule_files(main, main.parent / "rules.d")
    (folder / "c.yml").write_text("")
    with pytest.raises(ConfigError, match="at most 2 rule files, there are 3"):
        read_rule_files(main, main.parent / "rules.d")


def add(folder):
    (folder / "new.yml").write_text(own("new"))


def rename(folder):
    (folder / "a.yml").rename(folder / "z.yml")


def remove(folder):
    (folder / "a.yml").unlink()


def replace(folder):
    (folder / ".a.tmp").write_text(own("other"))
    (folder / ".a.tmp").rename(folder / "a.yml")


def truncate(folder):
    with (folder / "a.yml").open("r+") as file:
        file.truncate(0)
        file.write(own("other", "more"))


def swap_links(folder):
    """As Kubernetes does: the files are links through ..data, which is swapped."""
    new = folder / "..2"
    new.mkdir()
    (new / "k.yml").write_text(own("swapped"))
    (folder / "..data_tmp").symlink_to("..2")
    (folder / "..data_tmp").rename(folder / "..data")


@pytest.mark.parametrize("change", [add, rename, remove, replace, truncate, swap_links])
def test_each_way_to_change_the_folder_is_noticed(main, folder, change):
    (folder / "a.yml").write_text(own("a"))
    (folder / "..1").mkdir()
    (folder / "..1" / "k.yml").write_text(own("k"))
    (folder / "..data").symlink_to("..1")
    (folder / "k.yml").symlink_to("..data/k.yml")
    before = signature_of(main, main.parent / "rules.d")
    assert signature_of(main, main.parent / "rules.d") == before
    change(folder)
    assert signature_of(main, main.parent / "rules.d") != before


def test_the_folder_may_come_later_and_is_watched_for(main):
    followed = RuleFiles(main, main.parent / "rules.d", "nobody")
    assert main.parent / "rules.d" in followed.folders
    before = signature_of(main, main.parent / "rules.d")
    (main.parent / "rules.d").mkdir()
    add(main.parent / "rules.d")
    assert signature_of(main, main.parent / "rules.d") != before


def load(followed: RuleFiles, now_s: float):
    """One load through the real child."""
    followed.begin(KINDS, now_s)
    return followed.finish(now_s)


def test_all_files_are_loaded_together_and_one_hash_covers_them(main, folder):
    add(folder)
    followed = RuleFiles(main, main.parent / "rules.d", "nobody")
    first = load(followed, 1.0)
    assert first.problems == [] and first.size
    os.close(first.fd)
    truncate_new = folder / "new.yml"
    truncate_new.write_text(own("new", "newer"))
    second = load(followed, 2.0)
    assert second.sha256 != first.sha256
    os.close(second.fd)


def test_one_bad_file_leaves_all_of_them_out_and_names_itself(main, folder):
    (folder / "bad.yml").write_text("version: 1\nrules: [\n")
    followed = RuleFiles(main, main.parent / "rules.d", "nobody")
    assert load(followed, 1.0) is None  # it gets a second look
    loaded = load(followed, 2.0)
    assert len(loaded.problems) == 1
    assert "rules.d/bad.yml:" in loaded.problems[0]
    status = followed.status()
    assert status["stale"] and status["stale_since"]
    assert [Path(name).name for name in status["files"]] == ["rules.yaml", "bad.yml"]


def test_a_bad_state_is_told_once_however_often_it_is_looked_at(main, folder):
    followed = RuleFiles(main, main.parent / "rules.d", "nobody")
    (folder / "bad.yml").write_text("version: 1\nrules: [\n")
    assert followed.due(0.0) is False  # it may still be changing
    assert followed.due(1.0)
    load(followed, 1.0)
    assert followed.due(1.1) is False
    assert followed.due(1.6)
    assert load(followed, 1.6).problems
    assert not any(followed.due(2.0 + n) for n in range(100))
