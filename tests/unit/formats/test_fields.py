import re

import pytest

from kwsiem.document import ECS_FIELDS
from kwsiem.formats import cef, compact, gelf, leef
from kwsiem.formats.fields import ACTIONS, FACTS, INT, LONG, SEVERITIES, severity

#: The standard's own limits (CEF dictionary): bytes of a text, or the type of a number.
CEF_LIMITS = {
    "act": 63, "app": 31, "c6a2": 45, "c6a3": 45, "cat": 1023, "cn1": LONG, "cn2": LONG, "cnt": INT, "cs1": 4000, "cs2": 4000,
    "cs3": 4000, "cs4": 4000, "cs5": 4000, "cs6": 4000, "destinationServiceName": 1023, "deviceDirection": 1,
    "deviceInboundInterface": 128, "dhost": 1023, "shost": 1023, "dpid": INT, "spid": INT, "dproc": 1023, "sproc": 1023,
    "dpt": 65535, "spt": 65535, "dst": 45, "src": 45, "duid": 1023, "suid": 1023, "duser": 1023, "suser": 1023, "dvchost": 100,
    "externalId": 40, "filePath": 1023, "fname": 1023, "in": INT, "out": INT, "msg": 1023, "outcome": 63, "proto": 31,
    "reason": 1023, "request": 1023, "requestMethod": 1023, "requestClientApplication": 1023, "frameworkName": 256,
    "threatAttackID": 32, "reportedDuration": LONG,
}  # fmt: skip
TIMES = {"rt", "start", "end"}


def keys(name):
    return [key for row in FACTS for key in getattr(row, name) if key.name != "(header)"]


def test_a_key_stands_for_one_fact():
    for name in ("cef", "leef"):
        found = [key.name for key in keys(name)]
        assert len(found) == len(set(found)), name
    for name in ("name", "gelf", "json"):
        found = [getattr(row, name) for row in FACTS if getattr(row, name)]
        assert len(found) == len(set(found)), name
    paths = [row.ocsf for row in FACTS if row.ocsf and not row.ocsf.startswith("(")]
    assert len(paths) == len(set(paths))


def test_what_is_computed_has_a_note():
    for row in FACTS:
        if any(key.computed for key in row.cef + row.leef):
            assert row.note, row.name


def test_every_fact_is_one_of_the_document():
    known = set(ECS_FIELDS)
    own = {row.name for row in FACTS} - known
    assert {name.split(".")[0] for name in own} <= {
        "@timestamp", "event", "host", "observer", "rule", "threat", "message", "kwsiem",
    }  # fmt: skip
    assert all(re.fullmatch(r"kwsiem\.(alert|digest)\..+", n) for n in own if n.startswith("kwsiem"))


@pytest.mark.parametrize("key", keys("cef"), ids=lambda key: key.name)
def test_cef_keys_are_those_of_the_standard_within_its_limits(key):
    assert re.fullmatch(r"[A-Za-z0-9]+", key.name)
    assert key.name in TIMES or key.limit <= CEF_LIMITS[key.name]
    assert bool(key.label) == bool(re.fullmatch(r"c(s|n|6a)\d", key.name))
    assert key.since == (key.name in {"frameworkName", "threatAttackID", "reportedDuration"})


def test_cef_has_an_order_for_every_key():
    assert {*cef.ORDER, cef.LAST} == {key.name for key in keys("cef")} | {"type"}
    assert len(cef.ORDER) == len(set(cef.ORDER))


def test_leef_keys_are_letters_and_digits():
    for key in keys("leef"):
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", key.name), key
    assert leef.KEYS.keys() & leef.PREDEFINED == {
        "cat", "devTime", "proto", "sev", "src", "dst", "srcPort", "dstPort", "usrName", "srcBytes", "dstBytes",
        "srcPackets", "dstPackets", "url",
    }  # fmt: skip


def test_gelf_names():
    for name in gelf.KEYS:
        assert re.fullmatch(r"_[a-z0-9_]+", name)
        assert name not in gelf.RESERVED


def test_json_keys_are_short_or_those_of_ecs():
    assert next(iter(compact.KEYS)) == "time"
    assert all(
        key == name or "." not in key or key.startswith(("block.", "digest."))
        for key, name in compact.KEYS.items()
    )


def test_severities_cover_the_whole_scale():
    assert [row.least for row in SEVERITIES] == [9, 7, 4, 1, 0]
    assert {severity(number).syslog for number in range(-1, 12)} == {1, 3, 4, 5, 6}
    assert severity(None) == severity("9") == severity(True) == SEVERITIES[-1]


def test_words_for_block_decisions():
    assert [action.word for action in ACTIONS.values()] == ["blocked", "block_failed", "unblocked"]
