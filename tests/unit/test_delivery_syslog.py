"""From the settings of syslog and GELF to an output and a message."""

import re

import msgspec
import pytest

from kwsiem.delivery import make_output, make_renderer
from kwsiem.document import document
from kwsiem.errors import ConfigError, OutputError
from kwsiem.formats import FORMATS
from kwsiem.output_settings import GelfSettings, SyslogSettings
from kwsiem.outputs.datagram import UdpOutput, UnixOutput
from kwsiem.outputs.relp import RelpOutput
from kwsiem.outputs.stream import StreamOutput

HOSTILE = 'é🦊=|\\"\n<0>1 ' * 200


@pytest.mark.parametrize(
    ("transport", "cls", "port"),
    [
        ("udp", UdpOutput, 514),
        ("tcp", StreamOutput, 514),
        ("tls", StreamOutput, 6514),
        ("relp", RelpOutput, 2514),
    ],
)
def test_each_transport_has_its_port(transport, cls, port):
    output = make_output(SyslogSettings(name="siem", transport=transport), {})
    assert type(output) is cls
    assert output._port == port
    other = make_output(SyslogSettings(name="siem", transport=transport, port=10514), {})
    assert other._port == 10514


def test_the_local_socket_is_dev_log():
    output = make_output(SyslogSettings(name="siem"), {})
    assert type(output) is UnixOutput
    assert output._path == "/dev/log"


def test_tls_has_octet_counting_whatever_framing_says():
    tls = make_output(SyslogSettings(name="siem", transport="tls", framing="newline"), {})
    tcp = make_output(SyslogSettings(name="siem", transport="tcp", framing="newline"), {})
    assert tls._frame(b"<13>1") == b"5 <13>1"
    assert tcp._frame(b"<13>1") == b"<13>1\n"
    assert tls._tls
    assert not tcp._tls


@pytest.mark.parametrize("changes", [{"transport": "tls"}, {"transport": "tls", "port": 1}])
def test_files_for_tls_are_read_when_the_output_is_made(changes):
    for make in (SyslogSettings, GelfSettings):
        with pytest.raises(ConfigError, match=r"'siem': ca_file /nowhere/ca\.pem: No such file"):
            make_output(make(name="siem", ca_file="/nowhere/ca.pem", **changes), {})
        with pytest.raises(ConfigError, match="fingerprint"):
            make_output(make(name="siem", fingerprint="12:34", **changes), {})


@pytest.mark.parametrize(
    ("transport", "most"), [("udp", 100), ("udp", 70_000), ("tcp", 479), ("relp", 1), ("unix", 1)]
)
def test_a_maximum_that_no_message_fits_or_no_datagram_holds_is_refused(transport, most):
    with pytest.raises(ConfigError, match="max_message_bytes"):
        make_output(SyslogSettings(name="siem", transport=transport, max_message_bytes=most), {})


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("header", ["rfc5424", "rfc3164", "local"])
@pytest.mark.parametrize(
    ("transport", "set_to", "most"),
    [("udp", 0, 1024), ("udp", 2048, 2048), ("tls", 0, 8000), ("relp", 0, 8000)],
)
def test_messages_fit_the_budget_whatever_is_in_them(make_alert, name, header, transport, set_to, most):
    render = make_renderer(
        SyslogSettings(name="siem", transport=transport, format=name, header=header, max_message_bytes=set_to)
    )
    fields = {
        "source.ip": "2001:db8::bad:1",
        "user.name": HOSTILE,
        "process.command_line": HOSTILE,
        "file.path": HOSTILE,
    }
    found = document(make_alert(reason=HOSTILE, fields=fields, values=[HOSTILE] * 20, host="h" * 64))
    message = render(msgspec.json.encode(found))
    wordy = transport == "udp" and not set_to and name in {"ecs", "ocsf"}
    assert len(message) <= (2048 if wordy else most)
    assert found["event"]["id"].encode() in message
    assert b"\n" not in message
    assert b"\xef\xbb\xbf" not in message
    assert re.match(rb"<(?!0>)\d{1,3}>", message)


def test_what_fits_in_no_form_is_refused_for_good(make_alert):
    render = make_renderer(SyslogSettings(name="siem", transport="tcp", format="ecs", max_message_bytes=480))
    with pytest.raises(OutputError, match="480 bytes") as error:
        render(msgspec.json.encode(document(make_alert(host="h" * 255))))
    assert not error.value.retryable


@pytest.mark.parametrize(
    ("transport", "path", "begin"),
    [
        ("unix", "", rb"<179>kwsiem\["),
        ("unix", "/run/own.sock", rb"<179>1 2026-"),
        ("udp", "", rb"<179>1 2026-"),
    ],
)
def test_the_short_header_is_for_the_local_daemon_alone(make_alert, transport, path, begin):
    render = make_renderer(SyslogSettings(name="siem", transport=transport, path=path))
    assert re.match(begin, render(msgspec.json.encode(document(make_alert()))))


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
def test_gelf_over_each_transport(transport):
    output = make_output(GelfSettings(name="graylog", transport=transport), {})
    if transport == "udp":
        assert type(output) is UdpOutput
        assert output._split(b"{}" * 100)[0][:1] == b"\x78", "zlib"
    else:
        assert type(output) is StreamOutput
        assert output._frame(b"{}") == b"{}\0"
        assert bool(output._tls) is (transport == "tls")
    assert output._port == 12201
    assert output.label == "sent, unconfirmed"
