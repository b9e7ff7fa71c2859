"""A change in a watched folder is a hint; signatures tell whether there was one."""

import os
import select

import pytest

from kwsiem.watch import FolderWatch, signature


@pytest.fixture
def watch():
    made = FolderWatch()
    yield made
    made.close()


def hinted(watch) -> bool:
    return bool(select.select([watch], [], [], 5)[0])


def test_a_write_a_rename_and_a_removal_are_hints(watch, tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("a")
    watch.watch([tmp_path])
    for change in (
        lambda: path.write_text("b"),
        lambda: os.replace(_other(tmp_path), path),
        path.unlink,
    ):
        change()
        assert hinted(watch)
        watch.clear()


def _other(folder):
    path = folder / "new"
    path.write_text("c")
    return path


def test_a_folder_that_is_not_there_is_watched_when_it_comes(watch, tmp_path):
    folder = tmp_path / "later"
    watch.watch([folder])
    folder.mkdir()
    watch.watch([folder])
    (folder / "x").write_text("a")
    assert hinted(watch)


def test_a_signature_changes_with_content_file_and_link(tmp_path):
    path = tmp_path / "a"
    assert signature(path) == ()
    path.write_text("1")
    first = signature(path)
    path.write_text("22")
    assert signature(path) != first
    link = tmp_path / "link"
    link.symlink_to(path)
    before = signature(link)
    other = tmp_path / "b"
    other.write_text("22")
    link.unlink()
    link.symlink_to(other)
    assert signature(link) != before
