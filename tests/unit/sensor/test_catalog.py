"""Probe headers are contracts, and scripts are held to them; what is wrong is told with file and line."""

import os
from pathlib import Path

import pytest

from kwsiem.errors import ProbeError
from kwsiem.sensor import catalog as catalog_module
from kwsiem.sensor.catalog import find_library, lint_probe, pam_target, preflight, read_catalog, read_probe
from kwsiem.sensor.supervisor import argument

PROBES = Path(__file__).resolve().parents[3] / "probes"
HEADER = """/*
 * beat - A number now and then.
 *
 * sees:     the number,
 *           and nothing else
 * blind:    the rest
 * overhead: none
 * needs:    tracepoint net:netif_receive_skb
 * needs:    uprobe libpam:pam_authenticate
 * needs:    btf
 * argument: netns
 * setting:  strlen 100
 *
 * event 1 test.beat test.number:u64 user.name:str
 *           A beat.
 */
"""
SCRIPT = """interval:ms:300 { print((1, (uint64)5, comm, nsecs)); }
interval:s:1 { print((0, nsecs)); }
"""


@pytest.fixture
def write(tmp_path):
    def make(text: str = HEADER + SCRIPT, name: str = "beat", folder: str = "a") -> Path:
        path = tmp_path / folder / f"{name}.bt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return make


def test_a_header_is_read_whole(write):
    spec = read_probe(write())
    assert (spec.name, spec.summary) == ("beat", "A number now and then.")
    assert (spec.sees, spec.blind, spec.overhead) == ("the number, and nothing else", "the rest", "none")
    assert spec.tracepoints == ("net:netif_receive_skb",)
    assert spec.uprobes == ("libpam:pam_authenticate",)
    assert spec.needs_btf
    assert spec.arguments == ("netns",)
    assert spec.environment == {"strlen": "100"}
    assert {n: k.name for n, k in spec.kinds.items()} == {0: "sensor.heartbeat", 1: "test.beat"}
    assert [f.name for f in spec.kinds[1].fields] == ["test.number", "user.name"]
    assert spec.kinds[1].description == "A beat."


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("/*", "", ":1: expected a header comment"),
        (" * beat - ", " * bear - ", ":2: expected 'beat - One sentence.'"),
        ("blind:    the rest", "", "says nothing under 'blind:'"),
        ("event 1 test.beat test.number:u64 user.name:str", "", "declares no event"),
        ("event 1 test.beat", "event 0 test.beat", ":14: event number 0 stands twice"),
        ("event 1 test.beat", "event 1 TestBeat", ":14: expected a kind such as tcp.syn, got 'TestBeat'"),
        ("test.number:u64", "test.number:u65", ":14: event test.beat: unknown type 'u65'"),
        ("test.number:u64", "test.number", ":14: event test.beat: expected NAME:TYPE"),
        ("user.name:str", "test.number:str", "stands twice"),
        ("argument: netns", "argument: pid", ":11: unknown argument 'pid', known: netns"),
        ("strlen 100", "strlen many", ":12: expected a setting"),
        ("strlen 100", "strlen 201", ":12: expected a setting"),
        ("strlen 100", "strlen ٣٣", ":12: expected a setting"),
        ("user.name:str", "class:str", ":14: event test.beat: 'class' cannot be the name of a field"),
        ("user.name:str", "ts_ns:u64", "'ts_ns' cannot be the name of a field"),
        ("user.name:str", "user-name:str", "'user-name' cannot be the name of a field"),
        ("user.name:str", "test_number:str", "cannot be told from another"),
        ("user.name:str", " ".join(f"f{n}:str" for n in range(32)), "more than 32 fields"),
        ("needs:    btf", "needs:    luck", ":10: needs: expected"),
        ("overhead: none", "costs:    none", ":7: expected sees, blind"),
    ],
)
def test_each_mistake_in_a_header_is_told_with_its_line(write, old, new, says):
    path = write((HEADER + SCRIPT).replace(old, new, 1))
    with pytest.raises(ProbeError) as error:
        read_probe(path)
    assert str(error.value).startswith(f"{path}:")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("script", "line", "says"),
    [
        ('printf("x");', 1, "printf is not allowed"),
        ("time();", 1, "time is not allowed"),
        ('system("x");', 1, "system is not allowed"),
        ("\nBEGIN { }", 2, "BEGIN is not allowed"),
        ("begin { }", 1, "begin is not allowed"),
        ("interval:s:1, END { }", 1, "END is not allowed"),
        ("x { signal(9); }", 1, "a probe only watches"),
        ("config = { x=1 }", 1, "no config block"),
        ("x { @y = args.name; }", 1, "args->field"),
        ("x { delete(@m, 1); }", 1, "delete(@m[k])"),
        ("#include <linux/x.h>", 1, "no #include"),
        ("x { print(@m[1]); }", 1, "print a tuple"),
        ("x { print((1, comm, nsecs)); }", 1, "test.beat has 4 elements"),
        ("x { print((1, 2, comm, 3)); }", 1, "the last element of a tuple is nsecs"),
        ("x { print((7, nsecs)); }", 1, "event number 7 is not declared"),
        ("x { print(($n, nsecs)); }", 1, "kind number as a literal"),
    ],
)
def test_each_forbidden_thing_in_a_script_is_found_where_it_stands(write, script, line, says):
    path = write(HEADER + script + "\n" + SCRIPT)
    problems = lint_probe(read_probe(path), path.read_text())
    assert len(problems) == 1, problems
    assert says in problems[0].message
    assert problems[0].line == HEADER.count("\n") + line


@pytest.mark.parametrize(
    "beat",
    [
        "",
        "interval:s:2 { print((0, nsecs)); }",
        "interval:s:1 { @n = 0; } x { print((0, nsecs)); }",
        "// interval:s:1 { print((0, nsecs)); }",
    ],
)
def test_a_missing_heartbeat_is_found(write, beat):
    path = write(HEADER + SCRIPT.split("\n", maxsplit=1)[0] + beat)
    assert "no heartbeat" in lint_probe(read_probe(path), path.read_text())[0].message


@pytest.mark.parametrize(
    "script",
    [
        '// printf("x") in a comment\n',
        "/* BEGIN */\n",
        'x /comm == "printf(" / { print((1, (uint64)(1 + (2 * 3)), comm, nsecs)); }\n',
        "x { print(@published); clear(@published); }\n",
        "x { delete(@m[1]); }\n",
        "x { @m[args->a] = ntop($x); }\n",
        "x { $end = 1; if ($end) { @begin = $BEGIN; } }\n",
        "interval:ms:500 { if (@x > 0) { @x = 0; } print((0, nsecs)); }\n",
    ],
)
def test_a_good_script_is_not_blamed(write, script):
    path = write(HEADER + script + SCRIPT)
    assert lint_probe(read_probe(path), path.read_text()) == []


@pytest.mark.parametrize("path", sorted(PROBES.glob("*.bt")), ids=lambda p: p.stem)
def test_shipped_probes_are_clean_and_documented(path):
    spec = read_probe(path)
    assert lint_probe(spec, path.read_text()) == []
    row = next(
        line
        for line in (PROBES / "README.md").read_text().splitlines()
        if line.startswith(f"| `{spec.name}`")
    )
    assert f"| {spec.overhead} |" in row
    for number, kind in spec.kinds.items():
        assert number == 0 or f"`{kind.name}`" in row


def test_a_later_folder_overrides_and_a_broken_file_hides_no_other(write, tmp_path):
    write()
    write("no header", "broken")
    write((HEADER + SCRIPT).replace("A number", "Another"), folder="b")
    catalog = read_catalog([tmp_path / "a", tmp_path / "b", tmp_path / "absent"])
    assert list(catalog.probes) == ["beat"]
    assert catalog.probes["beat"].summary.startswith("Another")
    assert len(catalog.problems) == 1
    assert "broken.bt:1" in str(catalog.problems[0])
    assert {"test.beat", "sensor.lost"} <= set(catalog.kinds())


def test_two_probes_cannot_disagree_about_a_kind(write, tmp_path):
    write()
    write((HEADER + SCRIPT).replace("beat - ", "other - ").replace("number:u64", "number:u32"), "other")
    write((HEADER + SCRIPT).replace("beat - ", "third - ").replace("test.beat", "sensor.lost"), "third")
    catalog = read_catalog([tmp_path / "a"])
    assert list(catalog.probes) == ["beat"]
    assert [p.message for p in catalog.problems] == [
        "kind test.beat is known with other fields: test.number:u64 user.name:str",
        "kind sensor.lost is known with other fields: probe.name:str event.reason:str event.count:u64",
    ]


def test_what_is_no_text_is_a_problem_and_no_exception(tmp_path):
    (tmp_path / "bin.bt").write_bytes(b"\xff\xfe")
    (tmp_path / "huge.bt").write_bytes(b"x" * 300_000)
    (tmp_path / "Bad-Name.bt").write_text(HEADER)
    (tmp_path / "gone.bt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a: b.bt").write_text(HEADER)
    os.mkfifo(tmp_path / "pipe.bt")
    messages = " ".join(str(problem) for problem in read_catalog([tmp_path]).problems)
    assert all(
        word in messages for word in ("not UTF-8", "larger than", "small letter", "cannot be read", "regular")
    )


def test_preflight_names_what_this_kernel_lacks(write, tmp_path):
    spec = read_probe(write())
    tracing = tmp_path / "tracing"
    assert preflight(spec, tracing) == f"{tracing}/events is not there: mount -t tracefs tracefs {tracing}"
    (tracing / "events").mkdir(parents=True)
    assert preflight(spec, tracing) == "this kernel has no tracepoint net:netif_receive_skb"
    (tracing / "events/net/netif_receive_skb").mkdir(parents=True)
    spec.uprobes = ("libnosuch:f",)
    assert preflight(spec, tracing) == "library libnosuch is not installed"
    spec.uprobes = ("libc:no_such_function_here",)
    assert "has no function no_such_function_here" in preflight(spec, tracing)
    spec.uprobes = ("libc:malloc",)
    assert preflight(spec, tracing) == ""


def test_libraries_are_found_as_the_linker_finds_them():
    found = find_library("libc")
    assert found and found.name.startswith("libc.so")
    assert find_library("libnosuch") is None


RETRACTING = """ * retracts: test.unbeat test.beat
 *
 * event 2 test.unbeat test.number:u64 test.then:ts
 *           There was none.
 */
"""


def retracting(line: str = "", fields: str = "") -> str:
    text = HEADER.removesuffix(" */\n") + RETRACTING + SCRIPT
    text = text.replace("test.unbeat test.beat", line) if line else text
    return text.replace("test.number:u64 test.then:ts", fields) if fields else text


def test_a_kind_can_take_events_of_another_back(write):
    kinds = read_probe(write(retracting())).kinds
    assert (kinds[2].retracts, kinds[2].description) == ("test.beat", "There was none.")
    assert kinds[1].retracts == ""


@pytest.mark.parametrize(
    ("line", "fields", "says"),
    [
        ("test.unbeat", "", "expected two kinds of test.beat, test.unbeat, got 'test.unbeat'"),
        ("test.unbeat test.gone", "", "expected two kinds"),
        ("test.beat test.beat", "", "expected two kinds"),
        ("sensor.heartbeat test.beat", "", "expected two kinds"),
        ("", "test.number:u64", "kind test.unbeat needs one field of type ts"),
        ("", "test.then:ts test.since:ts", "kind test.unbeat needs one field of type ts"),
        ("", "test.number:u32 test.then:ts", "test.beat has no test.number:u32"),
        ("", "test.other:u64 test.then:ts", "test.beat has no test.other:u64"),
    ],
)
def test_what_cannot_be_taken_back_is_told_with_its_line(write, line, fields, says):
    path = write(retracting(line, fields))
    with pytest.raises(ProbeError) as error:
        read_probe(path)
    assert str(error.value).startswith(f"{path}:16: retracts: ")
    assert says in str(error.value)


def test_a_printed_time_may_be_kept_when_it_is_nothing_but_nsecs(write):
    good = "x { $t = nsecs; @kept = $t; if (@kept != $t) { return; } print((1, (uint64)5, comm, $t)); }\n"
    path = write(HEADER + good + SCRIPT)
    assert lint_probe(read_probe(path), path.read_text()) == []


@pytest.mark.parametrize(
    "given",
    ["", "$t = arg0;", "$t = nsecs; $t = 5;", "$t = nsecs; $t += 5;", "$t = nsecs; $t++;", "$t = nsecs - 1;"],
)
def test_another_time_than_now_is_found(write, given):
    path = write(f"{HEADER}x {{ {given} print((1, (uint64)5, comm, $t)); }}\n{SCRIPT}")
    (problem,) = lint_probe(read_probe(path), path.read_text())
    assert "the last element of a tuple is nsecs" in problem.message


def test_the_pam_module_is_looked_for_beside_libpam(monkeypatch, tmp_path):
    """Where it is not, bpftrace gets what is there and never says what the module says."""
    library = tmp_path / "libpam.so.0"
    library.write_bytes(b"\x7fELF")
    monkeypatch.setattr(catalog_module, "find_library", lambda _: library)
    assert pam_target() == ("libpam", "pam_start")
    module = tmp_path / "security/pam_unix.so"
    module.parent.mkdir()
    module.write_bytes(b"\x7fELF without it")
    assert pam_target() == ("libpam", "pam_start")
    module.write_bytes(b"\0pam_sm_authenticate\0")
    assert pam_target() == (str(module), "pam_sm_authenticate")
    assert [argument(name) for name in ("pam_module", "pam_function")] == [str(module), "pam_sm_authenticate"]
    monkeypatch.setattr(catalog_module, "find_library", lambda _: None)
    assert pam_target() == ("libpam", "pam_start")
