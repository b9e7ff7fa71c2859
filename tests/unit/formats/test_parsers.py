"""Lines read back by parsers that others wrote: liblognorm (C), pycef, jc, syslog-rfc5424-parser, json.

Their weak points are theirs, and stated where a test makes room for them: liblognorm 2.0.6 swallows the
first letter of the first key and takes CEF:0 alone; pycef does not unescape, puts a slot's label in its
place and takes a header with an equals sign, a pipe or a backslash apart; jc builds on it.
"""

import json
import random
import re
import shutil
import subprocess
import warnings

import jc
import pycef
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsiem.document import document
from kwsiem.formats import FORMATS, cef, make, syslog

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its grammar library imports a module that is about to go
    from syslog_rfc5424_parser import SyslogMessage

HOSTILE = [
    "a|b", "a=b", "\\", "a\\", "\\\\", "\\=", "=", "==", "x cs1=forged", " cs1=forged msg=x", "a\nCEF:0|x|y|1|2|3|4|", "a\r\nb",
    "\x00", "a\x00b", "\x1b[2J", "a\tb", '"', "'", "\"a=\"b", "]", "[x]", "\ud800", "a\udcffb", "🦊", "🦊=" * 400, "\u202egnp.exe",
    "\u200f", "\u2028", "x" * 10_000, "=" * 10_000, "\\" * 10_000, "é|" * 5000, "", " ", "  a  ", "fe80::1%eth0", "<0>1 - - - - - -",
    "%s%n", "${jndi:ldap://x}", "\\n", "\\r", "\\|", "|", "||||", "msg=", "a=b\\", "\xa0", "\ufeff", "\x85", "key=val^key=val",
]  # fmt: skip
FIELDS = (
    "user.name",
    "process.name",
    "process.command_line",
    "file.path",
    "service.name",
    "url.original",
    "user_agent.original",
)
TEXTS = {
    "duser": "user.name", "dproc": "process.name", "cs4": "process.command_line", "filePath": "file.path",
    "destinationServiceName": "service.name", "request": "url.original", "requestClientApplication": "user_agent.original",
}  # fmt: skip
LIMITS = {"cs4": 4000}


def corpus(make_alert, title=True):
    """Alerts in which every text is hostile, each text in every place."""
    choose = random.Random(20260102)
    found = []
    for number in range(len(HOSTILE) * 4):
        picked = [HOSTILE[(number + 7 * n) % len(HOSTILE)] for n in range(len(FIELDS))]
        found.append(
            document(
                make_alert(
                    number=number,
                    title=choose.choice(HOSTILE) if title else "Title",
                    rule_id=choose.choice(HOSTILE) if title else "rule",
                    host=choose.choice(HOSTILE),
                    reason=choose.choice(HOSTILE),
                    values=choose.sample(HOSTILE, 3),
                    fields={**dict(zip(FIELDS, picked, strict=True)), "source.address": "fe80::1%eth0"},
                )
            )
        )
    return found


def fact(found, name):
    for part in name.split("."):
        found = found.get(part, {})
    return found or ""


def cut(text, limit=1023):
    return text.encode()[:limit].decode("utf-8", "ignore").strip()


def check_extension(found, pairs):
    """The extension says what the document says, and holds nothing else."""
    for key, name in TEXTS.items():
        assert pairs.get(key, "") == cut(fact(found, name), LIMITS.get(key, 1023)), key
    assert pairs.get("msg", "") == cut(found["message"])
    assert pairs.get("reason", "") == cut(fact(found, "event.reason"))
    assert pairs["externalId"] == found["event"]["id"]
    assert pairs["c6a2"] == "fe80::1"
    assert pairs.get("cs1", "") == cut(found["rule"]["id"])
    assert set(pairs) <= {*cef.ORDER, cef.LAST, *(f"{slot}Label" for slot in cef.ORDER)}


@pytest.mark.skipif(not shutil.which("lognormalizer"), reason="needs liblognorm-utils")
def test_liblognorm_reads_every_line_back(make_alert, tmp_path, documents):
    rules = tmp_path / "rules.rb"
    rules.write_text("version=2\nrule=:%cef:cef%\n")
    alerts = corpus(make_alert)
    lines = [cef.render(found) for found in [*alerts, *documents.values()]]
    answer = subprocess.run(
        ["lognormalizer", "-r", str(rules), "-e", "json"],
        input="".join(line + "\n" for line in lines).encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    answers = answer.stdout.decode().split("\n")[:-1]
    assert len(answers) == len(lines), "no line made a second one"
    for line, said in zip(lines, answers, strict=True):
        assert "unparsed-data" not in json.loads(said), line
    for found, said in zip(alerts, answers, strict=False):
        header = json.loads(said)["cef"]
        pairs = header["Extensions"]
        assert pairs.pop("t") == "1767323046123", "rt, without its first letter"
        check_extension(found, pairs)
        assert header["Name"] == cut(found["rule"]["name"], 512) or "alert"
        assert header["SignatureID"] == (cut(found["rule"]["id"]) or "unknown")
        assert header["Severity"] == "8"
        assert (header["DeviceVendor"], header["DeviceProduct"]) == ("KernelWatch", "kwsiem")


def unescaped(text):
    return re.sub(r"\\([\\=])", r"\1", text)


@pytest.mark.parametrize("version", [0, 1])
def test_pycef_reads_every_line_back(make_alert, version):
    render = make("cef", cef_version=version)
    for found in corpus(make_alert, title=False):
        said = pycef.parse(render(found))
        assert said["CEFVersion"] == str(version)
        assert (said["DeviceEventClassID"], said["Name"]) == ("rule", "Title")
        names = {"RuleId": "cs1", "CommandLine": "cs4", "Source IPv6 Address": "c6a2"}
        pairs = {names.get(key, key): unescaped(value) for key, value in said.items()}
        if version == 1:
            pairs["c6a2"] = pairs["src"]
        ours = {key: value for key, value in pairs.items() if key in {*cef.ORDER, cef.LAST}}
        check_extension(found, ours)


def test_jc_reads_the_shipped_examples_back(documents):
    for name, found in documents.items():
        said = jc.parse("cef", cef.render(found))
        said = said[0] if isinstance(said, list) else said
        assert said["externalId"] == found["event"]["id"], name
        assert said["msg"] == found["message"], name
        assert said["deviceEventClassId"] == found["rule"]["id"], name
        assert said["agentSeverityNum"] == found["event"]["severity"], name


ANY = st.text(st.characters(exclude_categories=[]), max_size=200)


@settings(max_examples=60)
@given(ANY, ANY, ANY, ANY, st.sampled_from(sorted(FORMATS)))
def test_header_and_message_through_a_strict_rfc_5424_parser(make_alert, title, host, rule, user, name):
    found = document(make_alert(title=title, host=host, rule_id=rule, fields={"user.name": user}))
    line = FORMATS[name](found)
    message = SyslogMessage.parse(syslog.header(found, "local6", "kwsiem", 7) + line)
    assert message.msg == line
    assert message.appname == "kwsiem"
    assert message.as_dict()["severity"] == "err"
    assert message.as_dict()["timestamp"].startswith("2026-01-02T03:04:06.123")
    assert not message.sd


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_no_hostile_text_ends_a_line(name, make_alert):
    for found in corpus(make_alert):
        line = FORMATS[name](found)
        assert len(line.splitlines()) == 1
        assert not set(line) & {chr(n) for n in range(32)}
        line.encode()
        if name in {"ecs", "json", "gelf", "ocsf"}:
            assert json.loads(line)
