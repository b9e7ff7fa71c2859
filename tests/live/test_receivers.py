"""The configurations in packaging/rsyslog and packaging/syslog-ng, loaded by the real daemons, with real alerts.

Every file is loaded as it is shipped, but for ports, addresses and paths.
"""

import json
import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import msgspec
import pytest
from peers.certificates import Certificates
from peers.daemon import Daemon, answers, free_port

from kwsiem.alert import Alert
from kwsiem.delivery import make_output, make_renderer
from kwsiem.document import document
from kwsiem.formats.facts import fact
from kwsiem.formats.syslog import frame_newline, frame_octets
from kwsiem.output_settings import SyslogSettings
from kwsiem.outputs.base import Rendered

pytestmark = pytest.mark.live

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
PEERS = Path(os.environ.get("KWSIEM_TEST_PEERS", "/var/cache/kwsiem-test-peers"))
START_NS = 1_767_323_045_123_000_000
HOSTILE = 'a=b \\ c | d "q" ]x\ncs1=forged rt=1\r\x00\x1b[31m\u2028<0>1 - - - é 🦊 #012\t\'%41 \\" {"a":1} \\'


def changed(text: str, changes: dict[str, str]) -> str:
    """The text with each piece put in the place of another, which must be there."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


class Receiver(Daemon):
    """A daemon with a shipped configuration; it writes into ``received``, below ``folder``."""

    program: tuple[str, ...]

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self.certificates = certificates
        self.received = folder / "received"
        self.config = folder / "conf.d"
        self.config.mkdir()
        super().__init__(folder)

    def argv(self):
        return [*self.program, "-f", str(self.folder / "main.conf")]

    def is_up(self):
        return all(answers(port) for name, port in self.ports.items() if name != "udp")

    def write(self, source: str, name: str, changes: dict[str, str]) -> None:
        (self.config / name).write_text(changed((PACKAGING / source / name).read_text(), changes))

    def wait_lines(self, name: str, count: int) -> None:
        """Until a file has so many lines."""
        self.wait(lambda: len(self.lines(name)) >= count)

    def lines(self, path: str) -> list[dict]:
        """The records of one file, whole lines only; each line is JSON and UTF-8."""
        file = self.received / path
        data = file.read_bytes() if file.exists() else b""
        return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].decode().split("\n") if line]

    def all(self) -> list[dict]:
        return [record for file in sorted(self.received.rglob("*.jsonl")) for record in self.lines(str(file))]

    def settings(self, transport: str, name: str = "cef") -> SyslogSettings:
        kind, _, framing = transport.partition("-")
        return SyslogSettings(
            name="siem", format=name, transport=kind, host="localhost" if kind == "tls" else "127.0.0.1",
            port=self.ports[transport], framing="newline" if framing == "newline" else "octet-counting",
            ca_file=self.certificates.ca, cert_file=self.certificates.client,
            key_file=self.certificates.client_key,
        )  # fmt: skip


class ShippedRsyslog(Receiver):
    program = ("/usr/sbin/rsyslogd", "-n", "-iNONE")
    transports = ("udp", "tcp", "tcp-newline", "tls", "relp")

    def prepare(self):
        if (self.folder / "main.conf").exists():
            return
        both = free_port()
        self.ports = {"udp": both, "tcp": both, "tcp-newline": both, "tls": free_port(), "relp": free_port()}
        here = {'address="0.0.0.0"': 'address="127.0.0.1"'}
        folder = {'"/var/log/kwsiem-receive"': f'"{self.received}"'}
        self.write("rsyslog", "kwsiem-inputs.conf", {**here, **folder, 'port="514"': f'port="{both}"'})
        self.write("rsyslog", "kwsiem-receive.conf", {})
        self.write("rsyslog", "kwsiem-relp.conf", {**here, '"2514"': f'"{self.ports["relp"]}"'})
        names = {"ca": "ca", "cert": "server", "key": "server_key"}
        files = {
            f"/etc/kwsiem-receive/{name}.pem": getattr(self.certificates, file)
            for name, file in names.items()
        }
        self.write("rsyslog", "kwsiem-tls.conf", {**here, **files, '"6514"': f'"{self.ports["tls"]}"'})
        stats = {"/var/log/kwsiem-receive-stats.jsonl": str(self.folder / "stats"), '"60"': '"1"'}
        self.write("rsyslog", "kwsiem-stats.conf", stats)
        (self.folder / "main.conf").write_text(
            f'global(workDirectory="{self.folder}")\n$IncludeConfig {self.config}/*.conf\n'
        )

    def counts(self) -> dict[str, int]:
        lines = (self.folder / "stats").read_text().split("\n") if (self.folder / "stats").exists() else []
        found = [json.loads(line[line.index("{") :]) for line in lines if '"name": "kwsiem"' in line]
        return found[-1]["values"] if found else {}


class ShippedSyslogNg(Receiver):
    program = (str(PEERS / "run-syslog-ng"), "-F", "--no-caps")
    transports = ("udp", "tcp", "tcp-newline", "tls")

    def prepare(self):
        self.ports = getattr(self, "ports", {name: free_port() for name in self.transports})
        pki = self.folder / "pki"
        pki.mkdir(exist_ok=True)
        for name, file in {"ca": "ca", "cert": "server", "key": "server_key"}.items():
            shutil.copy(getattr(self.certificates, file), pki / f"{name}.pem")
        ports = {
            f'kwsiem_{name}_port "{old}"': f'kwsiem_{name}_port "{self.ports[transport]}"'
            for name, old, transport in (
                ("udp", 514, "udp"), ("octets", 601, "tcp"), ("newline", 514, "tcp-newline"), ("tls", 6514, "tls"),
            )
        }  # fmt: skip
        others = {
            '"0.0.0.0"': '"127.0.0.1"',
            "/var/log/kwsiem-receive": str(self.received),
            "/etc/kwsiem-receive": str(pki),
        }
        self.write("syslog-ng", "kwsiem-settings.conf", {**ports, **others})
        for name in ("kwsiem.conf", "kwsiem-tls.conf"):
            self.write("syslog-ng", name, {})
        names = ("kwsiem-settings.conf", "kwsiem.conf", "kwsiem-tls.conf")
        includes = "".join(f'@include "{self.config / name}"\n' for name in names)
        (self.folder / "main.conf").write_text(f"@version: 3.38\n{includes}")

    def argv(self):
        files = {"-R": "persist", "-p": "pid", "-c": "control"}
        return [
            *super().argv(),
            *(part for f, name in files.items() for part in (f, str(self.folder / name))),
        ]

    def counts(self) -> dict[str, int]:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.folder / "control"))
            control.sendall(b"STATS\n")
            answer = b""
            while not answer.endswith(b"\n.\n"):
                answer += control.recv(65536)
        sums = {"alerts": 0, "unparsed": 0}
        names = {"d_kwsiem_hosts": "alerts", "d_kwsiem_unparsed": "unparsed"}
        for line in answer.decode().split("\n"):
            fields = line.split(";")
            if fields[0] == "destination" and fields[4] == "processed" and fields[1] in names:
                sums[names[fields[1]]] += int(fields[5])
        return sums


KINDS = {"rsyslog": ShippedRsyslog, "syslog-ng": ShippedSyslogNg}


@pytest.fixture(scope="module")
def receivers(open_folder):
    """Both daemons, for all tests: each test has hosts of its own."""
    folder = open_folder / "receivers"
    folder.mkdir()
    certificates = Certificates(folder / "pki")
    found = {}
    for name, kind in KINDS.items():
        (folder / name).mkdir()
        found[name] = kind(folder / name, certificates)
    yield found
    for receiver in found.values():
        receiver.stop()


def alert(host: str, number: int = 0, text: str = "root", **changes) -> Alert:
    fields = {
        "source.ip": "2001:db8::bad:1", "destination.ip": "192.0.2.1", "destination.port": 22,
        "user.name": text, "service.name": "sshd", "process.pid": 7, "process.name": text,
        "event.outcome": "failure",
    }  # fmt: skip
    values = {
        "rule_id": "ssh-brute-force", "title": "SSH brute force", "level": "critical", "state": "open",
        "identity": {"source.ip": fields["source.ip"]}, "count": 25, "first_ns": START_NS,
        "last_ns": START_NS + 10**9, "raised_ns": START_NS + 10**9, "opened_ts_ns": number,
        "reason": f"last: {text}", "tags": ["attack.t1110.001"], "fields": fields,
        "evidence": [{"kind": "auth.attempt", "ts_ns": 1, **fields}], "host": host,
    }  # fmt: skip
    return Alert(**{**values, **changes})


def documents(host: str, hostile: str = HOSTILE) -> list[dict]:
    scan = {"source.ip": "198.51.100.7", "destination.ip": "192.0.2.1", "destination.port": 24}
    return [
        document(alert(host)),
        document(alert(host, 1, hostile)),
        document(
            alert(host, 2, fields=scan, values=[20, 24], count=4_000_000_000, state="close", level="high")
        ),
        document(alert(host, 3, title="pipe | back\\slash = é", level="informational", rule_id="x" * 60)),
    ]


def deliver(receiver: Receiver, transport: str, name: str, found: list[dict]) -> list[bytes]:
    """Send alerts through the product's own output; gives what it was handed."""
    settings = receiver.settings(transport, name)
    render = make_renderer(settings)
    rendered = [Rendered(d["event"]["id"], 8, render(msgspec.json.encode(d))) for d in found]
    output = make_output(settings, {})
    output.open()
    try:
        output.send(rendered)
    finally:
        output.close()
    return [alert.data for alert in rendered]


def milliseconds(time: str) -> str:
    return {"2026-01-02T03:04:05.123Z": "1767323045123", "2026-01-02T03:04:06.123Z": "1767323046123"}[time]


#: CEF key -> dotted name in the document; the values are compared as text.
CEF_FIELDS = {
    "externalId": "event.id", "dvchost": "host.name", "dpt": "destination.port", "dst": "destination.ip",
    "duser": "user.name", "dproc": "process.name", "dpid": "process.pid", "outcome": "event.outcome",
    "destinationServiceName": "service.name", "reason": "event.reason", "msg": "message",
    "cs1": "rule.id", "cs5": "kwsiem.alert.incident_id", "cs6": "kwsiem.alert.state",
}  # fmt: skip


def check_cef(found: dict, record: dict) -> None:
    cef, pairs = record["cef"], record["cef"]["Extensions"]
    header = ("DeviceVendor", "DeviceProduct", "DeviceVersion", "SignatureID", "Name", "Severity", "Version")
    names = (
        "observer.vendor",
        "observer.product",
        "observer.version",
        "rule.id",
        "rule.name",
        "event.severity",
    )
    assert [cef[key] for key in header] == [*(str(fact(found, name)) for name in names), "0"]
    wanted = {key: value for key, name in CEF_FIELDS.items() if (value := fact(found, name)) is not None}
    if len(fact(found, "kwsiem.alert.values") or []) > 1:
        wanted.pop("dpt", None)
    assert {key: pairs.get(key) for key in wanted} == {k: str(v).strip() for k, v in wanted.items()}
    assert next(iter(set(pairs) & {"t", "rt"})) == "rt", "the first key is whole"
    assert pairs["rt"] == milliseconds(found["@timestamp"])
    assert pairs["start"] == milliseconds(found["event"]["start"])
    assert pairs["end"] == milliseconds(found["event"]["end"])
    assert pairs["cnt"] == str(min(found["kwsiem"]["alert"]["count"], 2**31 - 1))
    source = found["source"]["ip"]
    assert pairs["c6a2" if ":" in source else "src"] == source
    assert "forged" not in pairs["cs1"] and pairs["type"] == "2"


def as_texts(value: dict) -> dict:
    """What syslog-ng 3.38 makes of a JSON object: text of every value, dots in keys nested, lists left out here."""
    result: dict = {}
    for key, item in value.items():
        *path, last = key.split(".")
        node = result
        for part in path:
            node = node.setdefault(part, {})
        if isinstance(item, dict):
            node[last] = {**node.get(last, {}), **as_texts(item)}
        elif not isinstance(item, list):
            node[last] = f"{item:f}" if isinstance(item, float) else str(item)
    return result


def check_json(kind: str, record: dict) -> None:
    """JSON is kept as it is by rsyslog. syslog-ng keeps texts; its text of a list differs, ``raw`` has it whole."""
    sent, got = json.loads(record["raw"]), record["json"]
    if kind == "syslog-ng":
        sent, got = as_texts(sent), without_lists(got, sent)
    assert got == sent


def without_lists(got: dict, sent: dict) -> dict:
    """What was received without the text of what was sent as a list."""
    flat = {key.partition(".")[0] for key in sent if "." in key}
    return {
        key: without_lists(item, sent.get(key, {}) if key not in flat else item)
        if isinstance(item, dict)
        else item
        for key, item in got.items()
        if not isinstance(sent.get(key), list)
    }


@pytest.mark.parametrize(("kind", "transport"), [(k, t) for k in KINDS for t in KINDS[k].transports])
def test_every_field_of_an_alert_is_there_as_it_was_sent(receivers, kind, transport):
    receiver = receivers[kind]
    host = f"{transport}.Fields.example.net"
    # UDP has room for 1024 bytes: what is longer is shortened by the sender.
    found = documents(host, 'a=b \\ "c" | \\' if transport == "udp" else HOSTILE)
    formats = ("cef", "json") if transport == "udp" else ("cef", "ecs", "json")
    path = f"hosts/{host.lower()}.jsonl"
    sent: list[str] = []
    for name in formats:  # each over a connection of its own: the next only when the last has been written
        sent += [data.decode() for data in deliver(receiver, transport, name, found)]
        receiver.wait_lines(path, len(sent))
    records = receiver.lines(path)
    assert len(records) == len(found) * len(formats), "no record was forged, split or lost"
    assert all(data.endswith(record["raw"]) for data, record in zip(sent, records, strict=True))
    by_format = {"cef": [r for r in records if "cef" in r], "ecs": [], "json": []}
    for record in records:
        if "json" in record:
            by_format["ecs" if "kwsiem" in record["json"] else "json"].append(record)
    for record in records:
        assert (record["from"], record["host"], record["program"]) == ("127.0.0.1", host, "kwsiem")
        assert (record["process_id"], record["facility"]) == (str(os.getpid()), "local6")
        assert record["sent"].startswith("2026-01-02T03:04:06.123")
    for d, record in zip(found, by_format["cef"], strict=True):
        assert record["message_id"] == d["rule"]["id"][:32]
        assert record["severity"] == {10: "alert", 8: "err", 0: "info"}[d["event"]["severity"]]
        check_cef(d, record)
    for d, record in zip(found, by_format["ecs"], strict=False):
        assert json.loads(record["raw"])["event"]["id"] == d["event"]["id"]
        check_json(kind, record)
    for d, record in zip(found, by_format["json"], strict=True):
        sent = json.loads(record["raw"])
        assert (sent["id"], sent["source.ip"]) == (d["event"]["id"], d["source"]["ip"])
        check_json(kind, record)


HOSTILE_HOSTS = [
    "../../../escaped", "..", ".", "/", "/tmp/escaped", "a/../../../../escaped", "....//escaped", "//..//..//..//escaped", "///..///..///escaped", "A%2f..%2fb",
    "$(id)", "`id`", "${HOST}", "x" * 255, "unparsed", "-rf", "~root", "é\u202e/..", "\\..\\escaped",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_host_name_cannot_write_outside_the_folder(receivers, kind):
    """The name in the header is whatever a sender claims; each message ends in one file of the folder."""
    receiver = receivers[kind]
    outside = set(receiver.folder.parent.rglob("*escaped*"))
    before = {path.name for path in receiver.folder.iterdir()}
    frames = [
        frame_octets(
            f"<179>1 2026-01-02T03:04:05.123000Z {host} kwsiem 1 r - ".encode() + cef(f"hostile{number}")
        )
        for number, host in enumerate(HOSTILE_HOSTS)
    ]
    with socket.create_connection(("127.0.0.1", receiver.ports["tcp"])) as stream:
        stream.sendall(b"".join(frames))
    wanted = {f"hostile{number}" for number in range(len(HOSTILE_HOSTS))}

    def got():
        return {r["cef"]["Extensions"].get("duser") for r in receiver.all() if r.get("cef")}

    receiver.wait(lambda: got() >= wanted)
    assert set(receiver.folder.parent.rglob("*escaped*")) - outside == set(
        (receiver.received / "hosts").glob("*escaped*")
    )
    assert {path.name for path in receiver.folder.iterdir()} <= before | {"received", "stats"}
    assert {path.name for path in receiver.received.iterdir()} <= {"hosts", "unparsed.jsonl"}
    files = list((receiver.received / "hosts").iterdir())
    assert all(path.is_file() and path.name.isascii() and len(path.name) <= 70 for path in files)
    assert not any(r.get("cef") for r in receiver.lines("unparsed.jsonl"))


def cef(user: str, version: int = 0) -> bytes:
    return f"CEF:{version}|KernelWatch|kwsiem|1.0.0|r|R|8|rt=1767323045123 duser={user}".encode()


NO_ALERTS = {
    "another facility": b"<14>1 2026-01-02T03:04:05.123000Z h app 1 r - " + cef("nobody"),
    "plain text": b"<179>1 2026-01-02T03:04:05.123000Z h app 1 r - hello",
    "an unknown escape": b"<179>1 2026-01-02T03:04:05.123000Z h app 1 r - " + cef("a\\q"),
    # liblognorm reads beyond such a line.
    "a lone backslash at the end": b"<179>1 2026-01-02T03:04:05.123000Z h app 1 r - " + cef("a\\"),
    "a header that is cut": b"<179>1 2026-01-02T03:04:05.123000Z h app 1 r - CEF:0|a|b|c|",
    "an empty header field": b"<179>1 2026-01-02T03:04:05.123000Z h app 1 r - CEF:0||b|c|d|e|1|rt=1",
    "JSON that is cut": b'<179>1 2026-01-02T03:04:05.123000Z h app 1 r - {"a":',
    "bytes that are no UTF-8": b"<179>1 2026-01-02T03:04:05.123000Z h app 1 r - \xff\xfe {\xc3",
    "nothing": b"<179>1 2026-01-02T03:04:05.123000Z h app 1 r - ",
    "no header": b"<179>what is this",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_alert_has_a_file_of_its_own_and_is_counted(receivers, kind):
    receiver = receivers[kind]
    counted = receiver.counts().get("unparsed", 0)
    alerts = len(receiver.all()) - len(receiver.lines("unparsed.jsonl"))
    for data in NO_ALERTS.values():
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.sendto(data, ("127.0.0.1", receiver.ports["udp"]))
    receiver.wait(lambda: len(receiver.lines("unparsed.jsonl")) >= len(NO_ALERTS))
    unparsed = receiver.lines("unparsed.jsonl")
    assert len(unparsed) == len(NO_ALERTS)
    assert not any({"cef", "json", "kwsiem"} & set(record) for record in unparsed)
    assert len(receiver.all()) - len(unparsed) == alerts
    receiver.wait(lambda: receiver.counts().get("unparsed", 0) - counted == len(NO_ALERTS))
    receiver.wait(lambda: receiver.counts().get("alerts", 0) == alerts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{"format": "ocsf"}, {"format": "gelf"}, {"header": "rfc3164"}])
def test_other_formats_and_the_old_header_are_read(receivers, kind, changes):
    receiver, host = receivers[kind], f"other-{'-'.join(changes.values())}"
    found = documents(host)[:2]
    settings = msgspec.structs.replace(receiver.settings("tcp-newline"), **changes)
    render, output = make_renderer(settings), make_output(settings, {})
    output.open()
    output.send([Rendered(d["event"]["id"], 8, render(msgspec.json.encode(d))) for d in found])
    output.close()
    receiver.wait(lambda: len(receiver.lines(f"hosts/{host}.jsonl")) >= 2)
    for d, record in zip(found, receiver.lines(f"hosts/{host}.jsonl"), strict=True):
        if changes.get("format") == "ocsf":
            assert record["json"]["metadata"]["uid"] == d["event"]["id"]
        elif changes.get("format") == "gelf":
            assert record["json"]["_user_name"] == d["user"]["name"]
        else:
            assert record["program"] == "kwsiem"
            assert record["process_id"] == str(os.getpid())
            check_cef(d, record)


@pytest.mark.parametrize("kind", KINDS)
def test_both_versions_of_cef_the_old_header_and_long_lines_are_read(receivers, kind):
    receiver = receivers[kind]
    head = b"<179>1 2026-01-02T03:04:05.123000Z versions kwsiem 1 r - "
    bsd = b"<179>Jan  2 03:04:05 versions kwsiem[1]: "
    long = "x" * 60_000
    messages = [head + cef("one", 1), head + cef(long), bsd + cef("old")]
    with socket.create_connection(("127.0.0.1", receiver.ports["tcp"])) as stream:
        stream.sendall(b"".join(map(frame_octets, messages[:2])))
    port = receiver.ports["tcp-newline"]
    with socket.create_connection(("127.0.0.1", port)) as stream:
        stream.sendall(frame_newline(messages[2]))
    receiver.wait(lambda: len(receiver.lines("hosts/versions.jsonl")) >= 3)
    records = receiver.lines("hosts/versions.jsonl")
    found = sorted((r["cef"]["Version"], r["cef"]["Extensions"]["duser"]) for r in records)
    assert found == [("0", "old"), ("0", long), ("1", "one")]


@pytest.mark.parametrize("kind", KINDS)
def test_tls_takes_nothing_from_a_sender_without_a_certificate(receivers, kind):
    receiver = receivers[kind]
    context = ssl.create_default_context(cafile=receiver.certificates.ca)
    before = len(receiver.all())
    with socket.create_connection(("localhost", receiver.ports["tls"]), 10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as stream:
                stream.sendall(frame_octets(NO_ALERTS["plain text"]))
                refused = stream.recv(1) == b""
        except OSError:  # ssl.SSLError is one
            refused = True
    assert refused
    assert len(receiver.all()) == before


def test_what_relp_confirmed_is_written_when_rsyslog_is_killed(tmp_path):
    receiver = ShippedRsyslog(tmp_path, Certificates(tmp_path / "pki"))
    deliver(receiver, "relp", "cef", [document(alert("killed", number)) for number in range(100)])
    receiver.kill()
    ids = [record["cef"]["Extensions"]["externalId"] for record in receiver.lines("hosts/killed.jsonl")]
    assert ids == [document(alert("killed", number))["event"]["id"] for number in range(100)]


@pytest.mark.parametrize("files", ["kwsiem-inputs.conf kwsiem-receive.conf", "*.conf"])
def test_rsyslog_takes_the_files_as_they_are_shipped(tmp_path, files):
    """With and without the ones that need further packages."""
    for pattern in files.split():
        for path in (PACKAGING / "rsyslog").glob(pattern):
            shutil.copy(path, tmp_path)
    main = tmp_path / "main"
    main.write_text(f'module(load="imuxsock")\n$IncludeConfig {tmp_path}/*.conf\n')
    done = subprocess.run(
        ["/usr/sbin/rsyslogd", "-N1", "-f", str(main)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") <= 2, f"no warnings: {done.stderr}"


def test_syslog_ng_takes_the_files_as_they_are_shipped(tmp_path):
    main = tmp_path / "main"
    main.write_text(f'@version: 3.38\n@include "{PACKAGING}/syslog-ng/kwsiem-settings.conf"\n'
                    f'@include "{PACKAGING}/syslog-ng/kwsiem.conf"\n')  # fmt: skip
    argv = [str(PEERS / "run-syslog-ng"), "--syntax-only", "-f", str(main), "-R", str(tmp_path / "persist")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
