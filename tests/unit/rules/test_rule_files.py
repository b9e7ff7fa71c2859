"""Rule files as they come: odd names, odd links, kept times, too much; and what is kept when rules are refused."""

import os
import select
import shutil
import subprocess
import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from kwsiem import appliance as sensor
from kwsiem import cli
from kwsiem.cli.status import faults, render
from kwsiem.config import Settings, resolve
from kwsiem.control import ControlServer, ask
from kwsiem.errors import ConfigError
from kwsiem.messages import OwnEvent, RulesOffer, RulesTaken
from kwsiem.rules import files, watch
from kwsiem.rules.files import files_of, read_rule_files, signature_of
from kwsiem.rules.watch import RuleFiles
from kwsiem.sensor.catalog import read_catalog

PROBES = Path(__file__).parents[3] / "probes"
KINDS = read_catalog([PROBES]).kinds()
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


@pytest.fixture
def followed(main):
    return RuleFiles(main, main.parent / "rules.d", "nobody")


def load(followed: RuleFiles, now_s: float):
    """One load through the real child."""
    followed.begin(KINDS, now_s)
    loaded = followed.finish(now_s)
    if loaded and loaded.fd >= 0:
        os.close(loaded.fd)
    return loaded


# -- names and links ---------------------------------------------------------------------------------


def test_a_name_need_not_be_utf8(followed, folder):
    with open(os.fsencode(folder) + b"/\xff.yml", "w") as file:
        file.write("rules: [\n")
    assert load(followed, 1.0) is None
    assert "rules.d/\\xff.yml:" in load(followed, 2.0).problems[0]
    assert followed.status()["files"][1].endswith("\\xff.yml")


def test_a_link_to_itself_is_a_problem_and_harms_nobody(followed, folder):
    (folder / "a.yml").symlink_to("a.yml")
    assert folder in followed.folders
    assert followed.due(0.0) is False and followed.due(1.0)
    with pytest.raises(ConfigError, match=r"a\.yml: cannot be read: Too many levels"):
        followed.begin(KINDS, 1.0)


def test_the_folder_itself_may_be_a_link_to_nothing_or_a_file(main):
    folder = main.parent / "rules.d"
    assert len(read_rule_files(main, folder)) == 1
    folder.symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"rules\.d: is a link to nothing"):
        read_rule_files(main, folder)
    folder.unlink()
    folder.write_text("")
    with pytest.raises(ConfigError, match=r"rules\.d: cannot be read: Not a directory"):
        read_rule_files(main, folder)


def test_the_folder_may_be_reached_through_a_link_that_is_swapped(main, followed):
    for number in "12":
        (main.parent / f"v{number}").mkdir()
        (main.parent / f"v{number}" / "a.yml").write_text(own("a"))
    (main.parent / "rules.d").symlink_to("v1")
    assert main.parent / "v1" in followed.folders
    before = signature_of(main, followed.folder)
    (main.parent / "new").symlink_to("v2")
    (main.parent / "new").rename(main.parent / "rules.d")
    assert signature_of(main, followed.folder) != before
    assert main.parent / "v2" in followed.folders


def point_elsewhere(folder: Path) -> None:
    """The link itself is replaced."""
    (folder / "new").symlink_to(folder.parent / "second.yml")
    (folder / "new").rename(folder / "a.yml")


def replace_target(folder: Path) -> None:
    """The link stays as it is, what it leads to is another file."""
    (folder.parent / "second.yml").rename(folder.parent / "first.yml")


def swap_on_the_way(folder: Path) -> None:
    """Neither the link nor any file changes, only a folder on the way to it."""
    (folder.parent / "new").symlink_to("v2")
    (folder.parent / "new").rename(folder.parent / "current")


@pytest.mark.parametrize("change", [point_elsewhere, replace_target, swap_on_the_way])
def test_what_a_link_leads_to_is_looked_at_each_time(main, folder, followed, change):
    """The other file has the same size and the same times: only which file it is tells."""
    base = main.parent
    for number, name in enumerate(("first.yml", "second.yml", "v1/b.yml", "v2/b.yml")):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(own(f"r{number}"))
        os.utime(base / name, ns=(1, 1))
    (base / "current").symlink_to("v1")
    (folder / "a.yml").symlink_to(base / "first.yml")
    (folder / "b.yml").symlink_to(base / "current" / "b.yml")
    assert followed.folders == {base, folder, base / "current", base / "v1"}
    assert load(followed, 1.0).problems == []
    assert not followed.due(10.0)
    change(folder)
    assert followed.due(20.0) is False  # it may still be changing
    assert followed.due(20.1)


def test_the_disk_is_looked_at_each_second_and_at_once_after_a_hint(main, followed, monkeypatch):
    looks = []
    monkeypatch.setattr("kwsiem.rules.watch.signature_of", lambda *_: looks.append(1) or signature_of(*_))
    assert load(followed, 1.0).problems == []
    looks.clear()
    assert not any(followed.due(2.0 + n / 10) for n in range(10))
    assert len(looks) == 1
    main.write_text(own("b"))
    assert not followed.due(2.95) and len(looks) == 1
    followed.hint()
    assert not followed.due(2.96)  # it may still be changing
    assert followed.due(3.05)
    assert load(followed, 3.05).problems == []
    assert not followed.due(4.0)
    main.write_text(own("c"))
    assert not followed.due(5.0) and followed.due(5.1)  # without a hint, too


# -- every way to write ------------------------------------------------------------------------------


def sed(path: Path) -> None:
    subprocess.run(["sed", "-i", "s/^  - id: a$/  - id: b/", path], check=True)


def vim_renames(path: Path) -> None:
    """Vim with backupcopy=no: the old file becomes the backup, a new one is written."""
    path.rename(f"{path}~")
    path.write_text(own("b"))
    Path(f"{path}~").unlink()


def vim_copies(path: Path) -> None:
    """Vim with backupcopy=yes, for links and files of others: the file keeps its inode."""
    shutil.copyfile(path, f"{path}~")
    path.write_text(own("b"))
    Path(f"{path}~").unlink()


def keep_times(path: Path) -> None:
    """As ``cp -p`` and ``rsync --inplace --times`` do: same inode, same size, same time of modification."""
    before = path.stat()
    path.write_text(own("b"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def touch_only(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize("edit", [sed, vim_renames, vim_copies, keep_times, touch_only])
def test_each_way_to_write_a_file_is_noticed_and_leaves_one_file(followed, folder, edit):
    path = folder / "a.yml"
    path.write_text(own("a"))
    first = load(followed, 1.0)
    assert not followed.due(10.0)
    edit(path)
    assert followed.due(20.0) is False  # it may still be changing
    assert followed.due(20.1)
    again = load(followed, 20.1)
    assert again.problems == []
    assert (again.sha256 == first.sha256) == (edit is touch_only)
    assert files_of(followed.path, folder) == [followed.path, path]


def test_a_file_that_is_half_written_is_not_told(followed, folder):
    path = folder / "a.yml"
    path.write_text("version: 1\nrules: [")
    assert load(followed, 1.0) is None
    path.write_text(own("a"))
    assert followed.due(1.5)  # the second look
    assert load(followed, 1.5).problems == []
    assert not followed.status()["stale"]


# -- bounds ------------------------------------------------------------------------------------------


def test_no_more_is_read_than_may_be(main, folder, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2**20)
    for number in range(50):
        (folder / f"{number}.yml").write_bytes(b"#" * 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="together have more than"):
            read_rule_files(main, folder)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_beyond_the_most_files_none_is_looked_at(main, folder, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILES", 3)
    for number in range(10):
        (folder / f"{number}.yml").write_text("")
    assert len(files_of(main, folder)) == 1 + 3
    before = signature_of(main, folder)
    (folder / "9.yml").unlink()
    assert signature_of(main, folder) != before  # a name less is noticed all the same


# -- what the sensor cannot start --------------------------------------------------------------------


def no_more(*_args, **_options):
    raise BlockingIOError(11, "Resource temporarily unavailable")


@pytest.mark.parametrize("what", ["subprocess.Popen", "os.memfd_create", "os.pidfd_open"])
def test_a_loader_that_cannot_be_started_is_a_problem_and_leaves_nothing(followed, monkeypatch, what):
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        module, name = what.split(".")
        patch.setattr(getattr(watch, module), name, no_more)
        with pytest.raises(ConfigError, match="cannot be loaded: Resource temporarily unavailable"):
            followed.begin(KINDS, 1.0)
    assert not followed.loading
    assert os.listdir("/proc/self/fd") == before
    assert load(followed, 2.0).problems == []


# -- stale -------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read_stay_stale_though_the_engine_is_started_again(followed, folder):
    good = load(followed, 1.0)
    followed.taken(good.sha256, 1, [], 0)
    (folder / "a.yml").symlink_to("nowhere")
    for now_s in (2.0, 3.0):
        with pytest.raises(ConfigError) as error:
            followed.begin(KINDS, now_s)
        followed.failed([str(error.value)], now_s)
    followed.taken(good.sha256, 1, [], 0)
    status = followed.status()
    assert status["stale"]
    assert (status["loaded_sha256"], status["disk_sha256"]) == (good.sha256, "")
    assert "a.yml: cannot be read" in status["problems"][0]
    (folder / "a.yml").unlink()
    assert load(followed, 4.0).problems == []
    followed.taken(good.sha256, 1, [], 0)
    assert not followed.status()["stale"]


def test_stale_since_is_when_it_began_not_the_latest_look(followed, folder):
    good = load(followed, 1.0)
    followed.taken(good.sha256, 1, [], 0)
    (folder / "a.yml").write_text("rules: [\n")
    assert load(followed, 2.0) is None
    assert load(followed, 2.5).problems
    since = followed.stale_ns
    (folder / "a.yml").write_text("rules: [[\n")
    assert load(followed, 3.0) is None
    assert load(followed, 3.5).problems
    assert followed.stale_ns == since > 0


# -- the sensor --------------------------------------------------------------------------------------


class Sensor(sensor.Appliance):
    """The sensor's side of a reload, without processes: what it sends to the engine is noted."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.sent: list[object] = []

    def _to_engine(self, message, *_fds: int) -> bool:
        self.sent.append(message)
        return True

    def offered(self) -> list[str]:
        """Hashes of the rules that were offered since the last call."""
        found = [message.sha256 for message in self.sent if isinstance(message, RulesOffer)]
        self.sent.clear()
        return found

    def loads(self, sha256: str) -> None:
        """A load that went well."""
        self._rules_loaded(watch.Loaded(sha256, os.memfd_create("rules"), 1))

    def answers(self, sha256: str, error: str = "") -> None:
        """What the engine says."""
        self._from_engine(RulesTaken(sha256=sha256, rules=1, took_ms=1.0, error=error))

    def new_engine(self) -> list[str]:
        """What an engine that is started again is offered."""
        self._from_engine(sensor.Ready(pid=1))
        return self.offered()


@pytest.fixture
def running(main, monkeypatch):
    monkeypatch.setattr(sensor, "check_host", lambda _: (0, 17, 0))
    made = Sensor(resolve(Settings(host="h", rules=str(main), probes=(str(PROBES),), user="nobody")))
    monkeypatch.setattr(made.supervisor, "attach_all", lambda: None)
    made.blocker = SimpleNamespace(
        status=lambda: {
            "mode": "off",
            "confirm_in_s": None,
            "blocks": 0,
            "counters": {},
            "firewall_error": "",
        }
    )
    made._first_rules()
    yield made
    for _, fd in made._offers:
        os.close(fd)
    for end in made._alert_ends:
        end.close()
    made.selector.close()


def test_rules_that_the_engine_refuses_are_not_offered_again_and_the_old_ones_are(running):
    (first,) = running.new_engine()
    running.answers(first)
    running.loads("2")
    assert running.offered() == ["2"]
    running.answers("2", error="too many")
    assert running.rules.status()["problems"] == ["too many"]
    assert running.new_engine() == [first]
    running.loads("3")
    running.answers("3")
    running.offered()
    assert running.new_engine() == ["3"]


def test_an_engine_that_ends_before_it_answers_gets_the_rules_that_ran_and_the_new_ones(running):
    (first,) = running.new_engine()
    running.answers(first)
    running.loads("2")
    running.loads("3")  # the engine has not answered to 2, and need not any more
    running.offered()
    assert running.new_engine() == [first, "3"]
    running.answers(first)
    running.answers("3")
    assert running.new_engine() == ["3"]


def test_no_descriptor_is_lost_over_many_reloads(running):
    before = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        running.loads(str(number))
        if number % 3:
            running.answers(str(number), error="no" if number % 2 else "")
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_bad_state_is_told_once_and_once_more_when_it_is_another(running, main):
    def failures() -> list[str]:
        told = [m for m in running.sent if isinstance(m, OwnEvent) and m.kind == "rules.reload"]
        told += [m for m in running._pending if m.kind == "rules.reload"]
        return [m.fields["error.message"] for m in told if m.fields["event.outcome"] == "failure"]

    def look(start_s: float) -> None:
        """A minute of the sensor's loop, its loader children waited for."""
        for tenth in range(600):
            running._follow_rules(start_s + tenth / 10)
            if running.rules.loading:
                running.forget(running.rules.pidfd)
                running._rules_loaded(running.rules.finish(start_s + tenth / 10))

    main.write_text("rules: [\n")
    look(100.0)
    assert len(failures()) == 1
    main.write_text("version: 1\nrules: [{id: x, titel: y}]\n")
    look(200.0)
    assert len(failures()) == 2
    assert running.rules.status()["stale"]


def test_the_loop_of_the_sensor_outlives_a_loader_that_cannot_be_started(running, main, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(watch.subprocess, "Popen", no_more)
        main.touch()
        for tenth in range(20):
            running._follow_rules(100.0 + tenth / 10)
    assert "cannot be loaded" in running.rules.status()["problems"][0]


# -- what people see ---------------------------------------------------------------------------------

SIGMA = """title: Not for this host
logsource: {product: windows, category: process_creation}
detection: {image: {Image|endswith: '\\cmd.exe'}, condition: image}
"""


def test_status_tells_stale_rules_and_skipped_ones_over_the_socket(running, folder, tmp_path):
    server = ControlServer(tmp_path / "control.sock", running.answer)
    running.rules.taken("a" * 64, 7, ["rules.d/x.yml:1: windows: no such log"], 12)
    running.rules.failed(["rules.d/bad.yml:2:1: not valid\x1b[31m"], 1.0)
    running.rules.failed(["rules.d/bad.yml:2:1: not valid\x1b[31m"], 2.0)
    (folder / "bad.yml").write_text("")
    status = _asked(server, tmp_path / "control.sock")
    rules = status["rules"]
    assert (rules["rules"], rules["skipped"], rules["stale"]) == (7, 12, True)
    assert rules["skipped_rules"] == ["rules.d/x.yml:1: windows: no such log"]
    assert [Path(name).name for name in rules["files"]] == ["rules.yaml", "bad.yml"]
    assert rules["loaded_sha256"] != rules["disk_sha256"]
    assert "figures" not in render(status)
    status["courier"]["series"] = {"bytes": 3 << 20, "lost": {"disk": 4}, "damaged": 1, "error": ""}
    status["engine"]["event_log"] = {"on": True, "rotated": 5, "lost": 6, "failed": ""}
    text = render(status)
    assert "figures  3.0 MiB; 4 lost (disk), 1 begun anew" in text
    assert "events   5 files complete, 6 lines lost" in text
    assert f"STALE since {rules['stale_since']}" in text
    assert "12 Sigma rules cannot be evaluated here" in text
    assert "rules.d/bad.yml:2:1" in text and "\x1b[31m" not in text
    assert any("rules are stale: rules.d/bad.yml" in fault for fault in faults(status))


def _asked(server: ControlServer, path: Path):
    """The answer of a server that is served once."""

    def serve() -> None:
        select.select([server], [], [], 10)
        server.serve()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return ask(path, {"command": "status"})
    finally:
        thread.join()
        server.close()


def test_check_lists_what_is_skipped_with_the_reason_and_that_is_no_error(main, folder, capsys):
    (folder / "windows.yml").write_text(SIGMA)
    assert cli.main(["check", "--no-probes", "--rules", str(main), "--probes", str(PROBES)]) == 0
    (line,) = [line for line in capsys.readouterr().out.split("\n") if line.startswith("skipped")]
    assert f"{folder / 'windows.yml'}:2:1" in line and "not-for-this-host: logsource" in line
