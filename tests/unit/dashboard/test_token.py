"""The token: made once, root's alone, and nothing that others put there is believed."""

import contextlib
import os
import pwd

import pytest

from kwsiem import appliance
from kwsiem.config import Settings
from kwsiem.dashboard.token import FILE_NAME, LEAST, NAME, folder_of, token_of
from kwsiem.errors import ConfigError, UnavailableError


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def state(tmp_path):
    made = tmp_path / "state"
    made.mkdir()
    return made


@pytest.fixture
def folder(state):
    made = folder_of(state)
    made.mkdir(0o700)
    return made


def test_it_is_made_once_and_for_its_owner_alone(state):
    token = token_of(state / "env", state)
    assert len(token) == 43
    assert token_of(state / "env", state) == token
    assert (folder_of(state) / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert folder_of(state).stat().st_mode & 0o777 == 0o700
    assert list(state.iterdir()) == [], "what lies there is given to the user without rights"


def test_it_stays_when_the_appliance_starts_again_and_gives_its_state_away(state):
    token = token_of(state / "env", state)
    (state / "kwsiem.db").touch()
    with contextlib.suppress(ConfigError):  # pytest's own folder is closed to others
        appliance.prepare_state(Settings(state_dir=str(state), user="nobody"))
    assert (state / "kwsiem.db").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert token_of(state / "env", state) == token


def test_a_secret_goes_first_and_must_not_be_guessable(state):
    (state / "env").write_text(f"{NAME}={'x' * LEAST}\n")
    assert token_of(state / "env", state) == "x" * LEAST
    assert not folder_of(state).exists()
    (state / "env").write_text(f"{NAME}={'x' * (LEAST - 1)}\n")
    with pytest.raises(ConfigError, match=str(LEAST)):
        token_of(state / "env", state)


def test_a_file_that_others_may_read_a_link_and_a_pipe_are_refused(state, folder, tmp_path):
    path = folder / FILE_NAME
    path.write_text("x" * 43)
    path.chmod(0o640)
    with pytest.raises(UnavailableError, match="its owner alone"):
        token_of(state / "env", state)
    path.unlink()
    (tmp_path / "other").write_text("y" * 43)
    path.symlink_to(tmp_path / "other")
    with pytest.raises(UnavailableError, match="cannot be read"):
        token_of(state / "env", state)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(UnavailableError, match="its owner alone"):
        token_of(state / "env", state)


def test_a_folder_that_others_may_use_and_a_link_are_refused(state, folder, tmp_path):
    folder.chmod(0o750)
    with pytest.raises(UnavailableError, match="its owner alone"):
        token_of(state / "env", state)
    folder.chmod(0o700)
    os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(UnavailableError, match="its owner alone"):
        token_of(state / "env", state)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    with pytest.raises(UnavailableError, match="cannot be kept"):
        token_of(state / "env", state)
