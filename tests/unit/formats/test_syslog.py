import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsiem.formats import cef, syslog

#: RFC 5424 section 6, structured data nil.
RFC5424 = re.compile(
    r"<(\d|[1-9]\d|1[0-8]\d|19[01])>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)|-)"
    r" ([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) ([!-~]{1,32}) - (.*)\Z",
    re.ASCII,
)
ANY = st.text(st.characters(exclude_categories=[]), max_size=300)


def test_the_header_of_a_scan(scan):
    line = syslog.header(scan, "local6", "kwsiem", 2211)
    assert line == "<179>1 2026-01-02T03:04:06.123000Z gw01.example.net kwsiem 2211 tcp-port-scan - "


@pytest.mark.parametrize(
    ("severity", "expected"),
    [(0, 6), (1, 5), (3, 5), (4, 4), (5, 4), (6, 4), (7, 3), (8, 3), (9, 1), (10, 1)],
)
def test_severities_follow_the_table_and_emerg_is_never_sent(severity, expected):
    assert syslog.priority({"event": {"severity": severity}}, "local6") == 22 * 8 + expected


@given(st.sampled_from(sorted(syslog.FACILITIES)), st.integers() | st.none() | st.text())
def test_pri_is_in_range_and_never_emerg(facility, severity):
    pri = syslog.priority({"event": {"severity": severity}}, facility)
    assert 8 < pri <= 191
    assert pri % 8 != 0


@given(ANY, ANY, ANY, ANY)
def test_no_field_of_the_header_can_be_forged(time, host, rule, app):
    document = {"@timestamp": time, "host": {"name": host}, "rule": {"id": rule}, "event": {"severity": 5}}
    found = RFC5424.match(syslog.header(document, "local0", app, 7) + "CEF:0|x")
    assert found
    assert found[1] == "132"
    assert found[5] == "7"
    assert found[7] == "CEF:0|x"


@given(ANY)
def test_the_local_header_is_pri_and_tag(app):
    assert re.fullmatch(
        r"<131>[A-Za-z0-9_-]{1,32}\[7\]: ", syslog.local_header({"event": {"severity": 8}}, "local0", app, 7)
    )


def test_missing_fields_are_nil():
    assert syslog.header({}, "local6", "", 1) == "<182>1 - - - 1 - - "


def test_there_is_no_byte_order_mark(scan):
    message = (syslog.header(scan, "local6", "kwsiem", 1) + cef.render(scan)).encode()
    assert b"\xef\xbb\xbf" not in message
    assert b" - CEF:0|" in message


def read_octets(stream):
    """A reader of octet-counted frames (RFC 6587 section 3.4.1)."""
    messages = []
    while stream:
        length, _, rest = stream.partition(b" ")
        assert length.isdigit()
        assert not length.startswith(b"0")
        messages.append(rest[: int(length)])
        assert len(messages[-1]) == int(length)
        stream = rest[int(length) :]
    return messages


@given(st.lists(st.binary(min_size=1, max_size=50)))
def test_octet_counted_frames_are_read_back_whatever_they_hold(messages):
    assert read_octets(b"".join(map(syslog.frame_octets, messages))) == messages


@given(st.lists(st.binary(max_size=50)))
def test_newline_frames_are_as_many_as_the_messages(messages):
    stream = b"".join(map(syslog.frame_newline, messages))
    assert stream.split(b"\n")[:-1] == [m.replace(b"\n", b" ").replace(b"\0", b" ") for m in messages]
    assert not stream or stream.endswith(b"\n")


@pytest.fixture
def zone(monkeypatch):
    """Sets the local time zone for one test."""

    def use(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield use
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("name", "stamp"),
    [("UTC", "Jan  2 03:04:06"), ("EST5", "Jan  1 22:04:06"), ("IST-5:30", "Jan  2 08:34:06")],
)
def test_the_bsd_header_has_local_time_and_a_day_padded_with_a_space(scan, zone, name, stamp):
    zone(name)
    assert (
        syslog.bsd_header(scan, "local6", "kwsiem", 2211) == f"<179>{stamp} gw01.example.net kwsiem[2211]: "
    )


@pytest.mark.parametrize("month", range(1, 13))
def test_months_are_english(zone, month):
    zone("UTC")
    line = syslog.bsd_header({"@timestamp": f"2026-{month:02d}-28T23:59:59.999Z"}, "local6", "kwsiem", 1)
    english = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][month - 1]
    assert line == f"<182>{english} 28 23:59:59 unknown kwsiem[1]: "


@given(ANY, ANY, ANY)
def test_no_field_of_the_bsd_header_can_be_forged(time, host, app):
    """RFC 3164 section 4.1: what stands where is told by spaces, and a tag by its bracket."""
    document = {"@timestamp": time, "host": {"name": host}, "event": {"severity": 5}}
    found = re.fullmatch(
        r"<132>[A-Z][a-z][a-z] [ 123]\d \d\d:\d\d:\d\d [A-Za-z0-9]([A-Za-z0-9._-]{0,253}[A-Za-z0-9])? [A-Za-z0-9_-]{1,32}\[7\]: (.*)",
        syslog.bsd_header(document, "local0", app, 7) + "CEF:0|x",
    )
    assert found
    assert found[2] == "CEF:0|x"
