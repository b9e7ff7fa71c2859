"""The token: made once, root's alone, and nothing that others put there is believed."""

import pytest

from kwsiem.dashboard.token import FILE_NAME, LEAST, NAME, token_of
from kwsiem.errors import ConfigError, UnavailableError


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def test_it_is_made_once_and_for_its_owner_alone(tmp_path):
    token = token_of(tmp_path / "env", tmp_path)
    assert len(token) == 43
    assert token_of(tmp_path / "env", tmp_path) == token
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_a_secret_goes_first_and_must_not_be_guessable(tmp_path):
    (tmp_path / "env").write_text(f"{NAME}={'x' * LEAST}\n")
    assert token_of(tmp_path / "env", tmp_path) == "x" * LEAST
    assert not (tmp_path / FILE_NAME).exists()
    (tmp_path / "env").write_text(f"{NAME}={'x' * (LEAST - 1)}\n")
    with pytest.raises(ConfigError, match=str(LEAST)):
        token_of(tmp_path / "env", tmp_path)


def test_a_file_that_others_may_read_a_link_and_a_pipe_are_refused(tmp_path):
    import os

    path = tmp_path / FILE_NAME
    path.write_text("x" * 43)
    path.chmod(0o640)
    with pytest.raises(UnavailableError, match="its owner alone"):
        token_of(tmp_path / "env", tmp_path)
    path.unlink()
    (tmp_path / "other").write_text("y" * 43)
    path.symlink_to(tmp_path / "other")
    with pytest.raises(UnavailableError, match="cannot be read"):
        token_of(tmp_path / "env", tmp_path)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(UnavailableError, match="its owner alone"):
        token_of(tmp_path / "env", tmp_path)
