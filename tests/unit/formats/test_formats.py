import json

import pytest

from kwsiem.formats import FORMATS, MAX_EXTRA, MAX_EXTRA_BYTES, make
from kwsiem.formats.fit import fit

EXTRA = {"environment": "prod", "data_center": "fra1"}


def test_all_formats_are_there():
    assert set(FORMATS) == {"cef", "leef", "ecs", "ocsf", "gelf", "json", "text"}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_without_options_it_is_the_plain_format(name, documents):
    for found in documents.values():
        assert make(name)(found) == FORMATS[name](found)


def test_constant_fields_stand_where_a_format_has_a_place(scan):
    lines = {name: make(name, extra=EXTRA)(scan) for name in FORMATS}
    assert json.loads(lines["ecs"])["labels"] == EXTRA
    assert json.loads(lines["json"])["labels.data_center"] == "fra1"
    assert " KernelWatchKwsiemEnvironment=prod KernelWatchKwsiemDataCenter=fra1 msg=" in lines["cef"]
    assert lines["leef"].endswith("^environment=prod^dataCenter=fra1")
    assert json.loads(lines["gelf"])["_data_center"] == "fra1"
    assert json.loads(lines["ocsf"])["metadata"]["labels"] == ["environment:prod", "data_center:fra1"]
    assert ', environment="prod", data_center="fra1", open, id=' in lines["text"]
    assert "labels" not in scan, "the document stays as it is"


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_values_of_constant_fields_are_escaped_like_others(name, scan):
    line = make(name, extra={"note": 'a=b | "c"\n^ cs1=x \\'})(scan)
    assert len(line.splitlines()) == 1
    if name == "cef":
        assert 'KernelWatchKwsiemNote=a\\=b | "c" ^ cs1\\=x \\\\ msg=' in line
    if name == "leef":
        assert line.endswith('^note=a=b | "c"   cs1=x \\')


@pytest.mark.parametrize(
    "name", ["a-b", "a.b", "A", "1a", "", "_a", "a_", "a__b", "é", "a" * 33, "a b", "a=b"]
)
def test_names_that_some_format_could_not_carry(name):
    with pytest.raises(ValueError, match="invalid name"):
        make("ecs", extra={name: "x"})


@pytest.mark.parametrize(
    ("name", "taken"),
    [("gelf", "id"), ("gelf", "rule_id"), ("gelf", "level"), ("gelf", "source"), ("leef", "src"), ("leef", "usr_name"),
     ("leef", "usrname"), ("leef", "rule_id"), ("leef", "resource")],
)  # fmt: skip
def test_names_that_a_format_has_itself(name, taken):
    with pytest.raises(ValueError, match="has a field of this name"):
        make(name, extra={taken: "x"})
    make("ecs", extra={taken: "x"})


def test_names_that_become_the_same():
    with pytest.raises(ValueError, match="two names are the same in leef"):
        make("leef", extra={"a_1b": "x", "a1b": "y"})


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_an_empty_value(value):
    with pytest.raises(ValueError, match="empty"):
        make("cef", extra={"environment": value})


def test_too_much():
    with pytest.raises(ValueError, match="too much"):
        make("cef", extra={f"a{n}": "x" for n in range(MAX_EXTRA + 1)})
    with pytest.raises(ValueError, match="too much"):
        make("cef", extra={"a": "x" * MAX_EXTRA_BYTES})


@pytest.mark.parametrize(
    "options",
    [{"name": "xml"}, {"name": "cef", "cef_version": 2}, {"name": "leef", "leef_version": "3.0"}, {"name": "ocsf", "ocsf_version": "1.1.0"}],
)  # fmt: skip
def test_unknown_options(options):
    with pytest.raises(ValueError, match=r"unknown .*: must be one of"):
        make(**options)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("extra", [{}, {"a": "x" * (MAX_EXTRA_BYTES - 1)}])
def test_every_alert_fits_a_datagram_with_constant_fields_too(name, extra, documents):
    size = 1100 if name == "ocsf" and extra else 1024 - 110
    for found in documents.values():
        line = fit(make(name, extra=extra), found, size)
        assert line is not None
        assert len(line.encode()) <= size
        assert found["event"]["id"] in line
