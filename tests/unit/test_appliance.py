"""What a host must have before the appliance starts, each lack in a sentence that says what to do."""

import contextlib
import os
import pwd

import pytest

from kwsiem import appliance
from kwsiem.config import Settings
from kwsiem.errors import ConfigError, UnavailableError

SETTINGS = Settings(host="h")


@pytest.fixture
def root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_not_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnavailableError, match="needs root"):
        appliance.check_host(SETTINGS)


def test_no_bpftrace(root):
    with pytest.raises(UnavailableError, match="apt-get install bpftrace"):
        appliance.check_host(Settings(bpftrace="/no/such/bpftrace"))


def test_something_else_called_bpftrace(root):
    with pytest.raises(UnavailableError, match="that is not bpftrace"):
        appliance.check_host(Settings(bpftrace="/bin/echo"))


def test_no_tracefs(root, monkeypatch, tmp_path):
    monkeypatch.setattr(appliance, "bpftrace_version", lambda _: (0, 17, 0))
    monkeypatch.setattr(appliance, "TRACING", tmp_path)
    with pytest.raises(UnavailableError, match="mount -t tracefs"):
        appliance.check_host(SETTINGS)


def test_no_btf(root, monkeypatch, tmp_path):
    (tmp_path / "events").mkdir()
    monkeypatch.setattr(appliance, "bpftrace_version", lambda _: (0, 17, 0))
    monkeypatch.setattr(appliance, "TRACING", tmp_path)
    monkeypatch.setattr(appliance, "BTF", tmp_path / "none")
    with pytest.raises(UnavailableError, match="CONFIG_DEBUG_INFO_BTF"):
        appliance.check_host(SETTINGS)


def test_files_of_an_earlier_user_go_along_and_links_do_not(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("x")
    state = tmp_path / "state"
    state.mkdir()
    (state / "kwsiem.db").write_text("x")
    (state / "soft").symlink_to(outside)
    (state / "hard").hardlink_to(outside)
    tmp_path.chmod(0o755)
    with contextlib.suppress(ConfigError):  # pytest's own folder is closed to others
        appliance.prepare_state(Settings(state_dir=str(state), user="nobody"))
    owner = pwd.getpwnam("nobody").pw_uid
    assert (state / "kwsiem.db").stat().st_uid == owner
    assert outside.stat().st_uid == 0


def test_a_state_folder_that_the_user_cannot_reach(tmp_path):
    if os.geteuid() != 0:
        pytest.fail("the unit tests of the sensor need root; run: sudo make test")
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigError, match=r"cannot get there.*chmod o\+x"):
        appliance.prepare_state(Settings(state_dir=str(tmp_path / "state"), user="nobody"))


class Talker:
    """The end of a process that says what it was given."""

    closed, bad = False, 0

    def __init__(self, *messages):
        self.messages = list(messages)

    def take_message(self):
        return self.messages.pop(0) if self.messages else None


class Anybody:
    name, heard_s = "courier", 0.0


@pytest.mark.parametrize("stats", [{"outputs": 5}, {"outputs": [7, {"name": "a"}], "alerts": []}, {}])
def test_no_figures_of_a_process_without_rights_end_the_sensor(stats):
    made = object.__new__(appliance.Appliance)
    made.settings = SETTINGS
    made.engine = made.courier = Anybody()
    made.courier.stats = stats
    made.supervisor = made.rules = made.blocker = Status()
    found = made._in_short()
    assert found["alerts"] == 0 and len(found["outputs"]) == (len(stats) == 2)


class Status:
    def status(self, *moment):
        return {"rules": 1, "stale": False, "mode": "off", "blocks": 0} if not moment else []


def test_a_message_that_cannot_be_dealt_with_is_counted_and_the_next_one_taken(caplog):
    made = object.__new__(appliance.Appliance)
    made._bad_messages = 0
    taken = []

    def take(message):
        taken.append(message)
        if message < 3:
            raise TypeError("what is this")

    made._receive(Anybody(), Talker(1, 2, 3), take)
    assert taken == [1, 2, 3]
    assert made._bad_messages == 2
    assert [record.message for record in caplog.records] == ["message refused"]
