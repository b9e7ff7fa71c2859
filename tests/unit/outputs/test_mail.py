"""The mail output against a real SMTP server (aiosmtpd), in clear and encrypted."""

import smtplib
import socket
import ssl
import threading

import msgspec
import pytest
from peers.certificates import Certificates
from peers.smtp import PASSWORD, USER, SmtpServer

from kwsiem.delivery import make_output, make_route
from kwsiem.document import document
from kwsiem.errors import ConfigError, OutputError
from kwsiem.outbox import Item, Outbox
from kwsiem.output_settings import EmailSettings
from kwsiem.outputs.base import PassingNotes, Rendered
from kwsiem.outputs.worker import Worker

#: aiosmtpd does not know that a connection may be encrypted from its beginning.
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning")

SENDER, ADMIN, OTHER = "kwsiem@gw01.example.net", "admin@example.net", "soc@example.net"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("pki"))


def context_of(certificates, name="server"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(getattr(certificates, name), getattr(certificates, f"{name}_key"))
    return context


@pytest.fixture
def server():
    with SmtpServer() as made:
        yield made


@pytest.fixture
def outbox(tmp_path):
    box = Outbox(tmp_path / "kwsiem.db", ["mail"])
    yield box
    box.close()


@pytest.fixture(autouse=True)
def _no_password_anywhere(caplog, capfd):
    yield
    assert PASSWORD not in caplog.text + "".join(capfd.readouterr())


def settings_of(server, **changes):
    given = {"security": "none", "sender": SENDER, "to": (ADMIN, OTHER), "timeout_s": 5.0, **changes}
    return EmailSettings(name="mail", host="localhost", port=server.port, **given)


def output_of(server, notes=None, **changes):
    return make_output(
        settings_of(server, **changes), {"password": PASSWORD} if "user" in changes else {}, notes=notes
    )


def worker_of(server, outbox, **changes):
    settings = settings_of(server, **changes)
    output = make_output(settings, {})
    return Worker("mail", output, outbox, make_route(settings, output.limits))


def rendered(alert, **changes):
    source = msgspec.json.encode({**document(alert), **changes})
    found = msgspec.json.decode(source)
    data = make_route(EmailSettings(name="mail")).render(source)
    return Rendered(found["event"]["id"], found["event"]["severity"], data, source)


def put(outbox, *alerts):
    made = [rendered(alert) for alert in alerts]
    outbox.put([Item(one.id, one.severity, one.source) for one in made])
    return [one.id for one in made]


def run(worker, outbox):
    now_s = 0.0
    while outbox.ledger()["mail"].waiting:
        assert now_s < 7200, worker.stats()
        now_s += worker.step(now_s)
    assert outbox.ledger()["mail"].balanced


def test_an_alert_is_one_mail_to_all(server, make_alert):
    output = output_of(server)
    output.open()
    alert = rendered(make_alert())
    output.send([alert])
    [(mail, recipients)] = server.mails
    assert recipients == [ADMIN, OTHER]
    assert server.senders == [SENDER]
    assert mail["From"] == SENDER and mail["To"] == f"{ADMIN}, {OTHER}"
    assert mail["Subject"] == "[kwsiem] HIGH: TCP port scan on gw01.example.net"
    assert mail["Message-ID"] == f"<{alert.id}@gw01.example.net>"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Date"].datetime
    assert "198.51.100.7 \N{RIGHTWARDS ARROW} 192.0.2.1" in mail.get_content()
    assert mail["In-Reply-To"] is None
    assert output.answer == f"accepted <{alert.id}@gw01.example.net>"


def test_the_mails_of_an_incident_are_a_thread_also_after_a_restart(server, make_alert):
    notes = PassingNotes()
    for state, count in (("open", 5), ("update", 50), ("close", 60)):
        output = output_of(server, notes)
        output.send([rendered(make_alert(state=state, count=count))])
    first, second, third = (mail for mail, _ in server.mails)
    assert second["In-Reply-To"] == third["In-Reply-To"] == first["Message-ID"]
    assert second["References"] == first["Message-ID"]
    assert len({mail["Message-ID"] for mail, _ in server.mails}) == 3
    assert second["Subject"] == f"Re: {first['Subject']}"


def test_what_an_attacker_writes_ends_no_header_and_no_mail(server, make_alert):
    evil = "x\r\n.\r\nQUIT\r\nBcc: evil@example.org\r\n\r\n<b>\u202e é 😀 https://evil.example"
    output_of(server).send(
        [rendered(make_alert(title=f"T {evil}", host=evil, reason=evil, fields={"user.name": evil}))]
    )
    [(mail, recipients)] = server.mails
    assert recipients == [ADMIN, OTHER]
    assert mail["Bcc"] is None
    assert "Bcc: evil" in mail["Subject"].replace("  ", " ")
    assert "https://evil" not in mail.get_content().split("\n", 1)[1]
    assert max(len(line) for line in server.raw[0].split(b"\r\n")) <= 998
    assert b"\n" not in server.raw[0].replace(b"\r\n", b"")
    assert server.raw[0].isascii()


def test_a_format_that_lets_line_ends_through_still_cannot_forge_a_header(server):
    data = msgspec.json.encode(
        {
            "subject": "a\r\nBcc: x@y",
            "text": "t\n",
            "headers": {"X-Kwsiem-Rule": "r\nTo: z@y", "X-Kwsiem-Alert": ">x@y\r\n<"},
        }
    )
    output_of(server).send([Rendered("ID", 5, data)])
    [(mail, _)] = server.mails
    assert mail["Bcc"] is None and mail["To"] == f"{ADMIN}, {OTHER}"
    assert mail["Message-ID"] == "<xy@gw01.example.net>"


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_encrypted_and_with_a_password(certificates, make_alert, security):
    with SmtpServer(security, context_of(certificates), login=True) as server:
        output = output_of(server, security=security, ca_file=certificates.ca, user=USER)
        output.open()
        output.send([rendered(make_alert())])
        assert len(server.mails) == 1


@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest.mark.parametrize("name", ["stranger", "misnamed", "expired"])
def test_a_server_that_is_not_the_right_one_gets_nothing(certificates, make_alert, security, name):
    with SmtpServer(security, context_of(certificates, name), login=True) as server:
        output = output_of(server, security=security, ca_file=certificates.ca, user=USER)
        with pytest.raises(OutputError, match="certificate verify failed") as caught:
            output.send([rendered(make_alert())])
        assert caught.value.retryable and caught.value.retry_after_s == 60.0
        assert not server.mails and not server.senders


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_pinned_certificate_takes_the_place_of_authorities(certificates, make_alert, security):
    with SmtpServer(security, context_of(certificates, "stranger")) as server:
        good = output_of(server, security=security, fingerprint=certificates.fingerprint("stranger"))
        good.send([rendered(make_alert())])
        wrong = output_of(server, security=security, fingerprint=certificates.fingerprint("server"))
        with pytest.raises(OutputError, match="fingerprint"):
            wrong.send([rendered(make_alert())])
        assert len(server.mails) == 1


def test_a_server_without_starttls_gets_nothing_in_clear(server, make_alert):
    output = output_of(server, security="starttls")
    with pytest.raises(OutputError, match="does not offer what the settings ask for") as caught:
        output.send([rendered(make_alert())])
    assert caught.value.retry_after_s == 60.0
    assert not server.mails and not server.senders


def test_a_wrong_password_is_said_before_the_first_alert(certificates):
    with SmtpServer("starttls", context_of(certificates), login=True) as server:
        output = make_output(
            settings_of(server, security="starttls", ca_file=certificates.ca, user=USER),
            {"password": "wrong-one"},
        )
        with pytest.raises(OutputError, match="login refused: 535") as caught:
            output.open()
        assert caught.value.retry_after_s == 60.0


def test_a_recipient_refused_for_good_does_not_keep_the_mail_from_the_others(server, make_alert, caplog):
    server.recipient_replies[OTHER] = "550 no such user"
    output = output_of(server)
    output.send([rendered(make_alert())])
    assert [recipients for _, recipients in server.mails] == [[ADMIN]]
    assert output.refused_recipients == 1
    assert f"{OTHER} refused: 550 no such user" in caplog.text


def test_a_recipient_refused_for_now_gets_the_mail_later_and_the_others_only_once(server, outbox, make_alert):
    server.recipient_replies[OTHER] = "451 try later"
    worker = worker_of(server, outbox)
    put(outbox, make_alert())
    wait_s = worker.step(0.0)
    assert "451 try later" in worker.last_error
    server.recipient_replies.clear()
    worker.step(wait_s)
    assert [recipients for _, recipients in server.mails] == [[ADMIN], [OTHER]]
    assert outbox.ledger()["mail"].delivered == 1


def test_the_mail_counts_as_delivered_when_the_last_recipient_is_refused_after_others_took_it(
    server, outbox, make_alert
):
    server.recipient_replies[OTHER] = "451 try later"
    worker = worker_of(server, outbox)
    put(outbox, make_alert())
    wait_s = worker.step(0.0)
    server.recipient_replies[OTHER] = "550 never"
    worker.step(wait_s)
    assert (outbox.ledger()["mail"].delivered, outbox.ledger()["mail"].dead) == (1, 0)
    assert len(server.mails) == 1


@pytest.mark.parametrize("where", ["recipients", "data"])
def test_5xx_for_the_mail_is_a_dead_letter_and_the_others_go_on(server, outbox, make_alert, where):
    worker = worker_of(server, outbox)
    ids = put(outbox, *[make_alert(number=n) for n in range(3)])
    if where == "recipients":
        server.recipient_replies = {ADMIN: "550 no", OTHER: "553 no"}
    else:
        server.data_reply = "554 looks like spam"
    worker.step(0.0)
    assert [letter.id for letter in outbox.dead_letters("mail")] == ids
    assert ("550 no" if where == "recipients" else "554 looks") in outbox.dead_letters("mail")[0].reason


@pytest.mark.parametrize(
    ("where", "reply", "wait_s"),
    [
        ("data", "451 disk full", None),
        ("mail", "450 greylisted", None),
        ("mail", "553 sender not allowed", 60.0),
    ],
)
def test_what_may_pass_later_waits(server, outbox, make_alert, where, reply, wait_s):
    setattr(server, f"{where}_reply", reply)
    worker = worker_of(server, outbox)
    put(outbox, make_alert())
    waited_s = worker.step(0.0)
    assert reply in worker.last_error
    assert wait_s is None or waited_s == wait_s
    assert outbox.ledger()["mail"].waiting == 1
    setattr(server, f"{where}_reply", "")
    run(worker, outbox)
    assert len(server.mails) == 1


def test_a_burst_becomes_single_mails_and_digests_whose_counts_add_up(server, outbox, make_alert):
    worker = worker_of(server, outbox)
    put(outbox, *[make_alert(number=n, level="low") for n in range(2000)])
    run(worker, outbox)
    subjects = [mail["Subject"] for mail, _ in server.mails]
    digests = [
        int(subject.split(": ")[1].split(" ")[0].replace(",", ""))
        for subject in subjects
        if " alerts" in subject
    ]
    assert sum(digests) + len(subjects) - len(digests) == 2000 == outbox.ledger()["mail"].delivered
    assert len(subjects) <= 8
    assert {mail["X-Kwsiem-State"] for mail, _ in server.mails} == {"open", "digest"}


@pytest.mark.parametrize("greeting", [b"", b"220-slow\r\n"], ids=["silent", "dripping"])
def test_a_server_that_drips_costs_the_time_out_and_no_more(make_alert, greeting):
    """Each line comes within smtplib's own time-out, which begins anew with each."""
    ended = threading.Event()

    def serve():
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(0.02)
            while not ended.is_set():
                try:
                    if greeting:
                        connection.sendall(greeting)
                    if not connection.recv(1000):
                        return
                except TimeoutError:
                    continue
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        settings = EmailSettings(
            name="mail", host="127.0.0.1", port=listening.getsockname()[1], security="none", sender=SENDER,
            to=(ADMIN,), timeout_s=0.4,
        )  # fmt: skip
        try:
            with pytest.raises(OutputError, match="timed out"):
                make_output(settings, {}).open()
        finally:
            ended.set()
            thread.join()


def test_nobody_there_and_a_name_that_is_none(make_alert):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        settings = EmailSettings(
            name="mail",
            host="127.0.0.1",
            port=nobody.getsockname()[1],
            security="none",
            sender=SENDER,
            to=(ADMIN,),
        )
        with pytest.raises(OutputError, match="connection refused"):
            make_output(settings, {}).open()


def test_an_answer_of_the_server_never_shows_the_password(certificates, monkeypatch):
    def login(self, user, password):
        raise smtplib.SMTPAuthenticationError(535, f"bad password {password}".encode())

    monkeypatch.setattr(smtplib.SMTP, "login", login)
    with SmtpServer("starttls", context_of(certificates)) as server:
        output = output_of(server, security="starttls", ca_file=certificates.ca, user=USER)
        with pytest.raises(OutputError, match=r"bad password \*\*\*"):
            output.open()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": ""}, "host: expected"),
        ({"sender": "kwsiem"}, "sender: expected an address"),
        ({"sender": "a@b\r\nBcc: c@d"}, "sender: expected an address"),
        ({"to": ()}, "to: expected 1 to 50"),
        ({"to": ("a b@c",)}, "to: expected 1 to 50 addresses, got 'a b@c'"),
        ({"to": ("ü@example.net",)}, "to: expected"),
        ({"security": "none", "user": USER}, "a password goes over starttls or tls only"),
        ({"user": USER, "password": ""}, "belong together"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, words):
    password = changes.pop("password", PASSWORD if "user" in changes else "")
    given = {"host": "mail.example.net", "sender": SENDER, "to": (ADMIN,), **changes}
    with pytest.raises(ConfigError, match=words):
        make_output(EmailSettings(name="mail", **given), {"password": password})
