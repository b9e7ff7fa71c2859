import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsiem.errors import OutputError
from kwsiem.outputs import relp
from kwsiem.outputs.base import Rendered
from kwsiem.outputs.relp import MAX_TXNR, WINDOW, Answer, Answers, RelpOutput

TIMEOUT_S = 5.0
OPEN = b"200 OK\nrelp_version=0\nrelp_software=librelp,1.11.0,http://librelp.adiscon.com\ncommands=syslog"


def numbered(count, first=0):
    return [Rendered(f"id{n}", 5, b"message %d" % n) for n in range(first, first + count)]


def rsp(txnr, data=b"200 OK"):
    return b"%d rsp %d %s\n" % (txnr, len(data), data) if data else b"%d rsp 0\n" % txnr


class Receiver(threading.Thread):
    """A RELP receiver by the protocol notes: takes connections in turn, answers as ``answer`` says.

    ``answer(txnr, data, self)`` gives the bytes to send for a syslog frame, or None to close.
    """

    def __init__(self, listening, answer, opening=OPEN):
        super().__init__(daemon=True)
        self.listening = listening
        self.answer = answer
        self.opening = opening
        self.frames = []
        self.sessions = 0
        self.most_waiting = 0
        self.stopped = False
        self.error = None
        listening.settimeout(0.02)
        self.start()

    def run(self):
        while not self.stopped:
            try:
                peer, _ = self.listening.accept()
            except TimeoutError:
                continue
            self.sessions += 1
            with peer:
                peer.settimeout(TIMEOUT_S)
                try:
                    self.serve(peer)
                except (ConnectionError, TimeoutError):
                    pass
                except AssertionError as error:  # told by the fixture
                    self.error = error

    def serve(self, peer):
        file = peer.makefile("rb")
        self.expected = 1
        while frame := self.frame(file):
            txnr, command, data = frame
            assert txnr == self.expected, "numbers follow each other"
            self.expected = 1 if txnr == MAX_TXNR else txnr + 1
            self.frames.append(frame)
            if command == "open":
                peer.sendall(rsp(txnr, self.opening) if isinstance(self.opening, bytes) else self.opening[0])
            elif command == "close":
                peer.sendall(rsp(txnr, b"") + b"0 serverclose 0\n")
                return
            else:
                answer = self.answer(txnr, data, self)
                if answer is None:
                    return
                peer.sendall(answer)

    @staticmethod
    def frame(file):
        head = b""
        while (
            not head.endswith((b" ", b"\n"))
            or head.count(b" ") < 2
            or (head.count(b" ") == 2 and head[-1:] == b" ")
        ):
            byte = file.read(1)
            if not byte:
                assert not head
                return None
            head += byte
        txnr, command, length = head.split()
        assert not txnr.startswith(b"0")
        data = b""
        if head.endswith(b" "):
            data = file.read(int(length))
            assert len(data) == int(length) > 0
            assert file.read(1) == b"\n"
        else:
            assert length == b"0"
        return int(txnr), command.decode(), data

    @property
    def messages(self):
        return [data for _, command, data in self.frames if command == "syslog"]


@pytest.fixture
def receiver(server):
    made = []

    def make(answer=lambda txnr, data, self: rsp(txnr), **options):
        made.append(Receiver(server, answer, **options))
        return made[-1]

    yield make
    for each in made:
        each.stopped = True
        each.join(2 * TIMEOUT_S)
        assert not each.is_alive()
        assert each.error is None, each.error


@pytest.fixture
def output(server):
    found = RelpOutput("127.0.0.1", server.getsockname()[1], TIMEOUT_S)
    yield found
    found.close()


def test_alerts_are_acknowledged_and_the_session_is_closed_in_order(receiver, output):
    peer = receiver()
    output.open()
    output.check()
    output.send(numbered(3))
    output.send(numbered(2, 3))
    output.check()
    output.close()
    output.close()
    assert output.label == "confirmed"
    assert not output.replays
    assert peer.frames[0][1] == "open"
    assert peer.frames[0][2].split(b"\n")[0] == b"relp_version=0"
    assert b"commands=syslog" in peer.frames[0][2].split(b"\n")
    assert peer.messages == [b"message %d" % n for n in range(5)]
    assert peer.frames[-1] == (7, "close", b"")


def test_more_than_a_window_goes_through_and_never_more_than_one_waits(receiver, output):
    """The receiver answers only when 100 wait: never are more than WINDOW on the way."""
    held = []

    def answer(txnr, data, self):
        held.append(txnr)
        self.most_waiting = max(self.most_waiting, len(held))
        last = data == b"message 999"
        if len(held) < 100 and not last:
            return b""
        answers = b"".join(map(rsp, held))
        held.clear()
        return answers

    peer = receiver(answer)
    output.open()
    output.send(numbered(1000))
    assert len(peer.messages) == 1000
    assert peer.most_waiting <= WINDOW


def test_the_window_is_full_when_nothing_is_answered(receiver, output):
    peer = receiver(lambda txnr, data, self: b"")
    output._timeout_s = 0.3
    output.open()
    with pytest.raises(OutputError, match="timed out") as error:
        output.send(numbered(1000))
    assert not error.value.taken
    assert len(peer.messages) == WINDOW


def test_answers_in_another_order_are_good(receiver, output):
    held = []

    def answer(txnr, data, self):
        held.append(txnr)
        return b"".join(map(rsp, reversed(held))) if len(held) == 5 else b""

    receiver(answer)
    output.open()
    output.send(numbered(5))


def test_the_numbers_begin_again_after_the_highest(receiver, output):
    peer = receiver()
    output.open()
    output._txnr, peer.expected = 999_999_996, 999_999_997
    output.send(numbered(200))
    assert [txnr for txnr, _, _ in peer.frames[1:6]] == [999_999_997, 999_999_998, 999_999_999, 1, 2]
    assert len(peer.messages) == 200


def test_what_was_acknowledged_before_the_end_is_taken(receiver, output):
    def answer(txnr, data, self):
        return rsp(txnr) if txnr <= 4 else None

    receiver(answer)
    output.open()
    with pytest.raises(OutputError, match=r"closed|reset") as error:
        output.send(numbered(10))
    assert error.value.taken == {0, 1, 2}
    assert error.value.retryable
    with pytest.raises(OutputError, match="not connected"):
        output.check()


def test_a_server_that_closes_the_session_is_believed(receiver, output):
    receiver(lambda txnr, data, self: rsp(txnr) + b"0 serverclose 0\n" if txnr == 3 else rsp(txnr))
    output.open()
    with pytest.raises(OutputError, match="ends the session") as error:
        output.send(numbered(600))
    assert error.value.retryable


def test_a_server_that_closes_the_session_when_nothing_waits(server, output):
    thread = threading.Thread(target=output.open)
    thread.start()
    peer, _ = server.accept()
    with peer:
        peer.recv(1000)
        peer.sendall(rsp(1, OPEN))
        thread.join()
        output.check()
        peer.sendall(b"0 serverclose 0\n")
        peer.shutdown(socket.SHUT_WR)
        output._connection._poll(TIMEOUT_S)
        with pytest.raises(OutputError, match="ends the session"):
            output.check()


def test_an_alert_that_is_refused_while_others_are_taken_is_refused_for_good_the_third_time(receiver, output):
    receiver(lambda txnr, data, self: rsp(txnr, b"500 no" if data == b"message 1" else b"200 OK"))
    pending = numbered(4)
    for _ in range(2):
        output.open()
        with pytest.raises(OutputError, match="500 no") as error:
            output.send(pending)
        assert error.value.retryable
        assert not error.value.refused
        assert len(error.value.taken) == len(pending) - 1
        pending = [pending[1], *numbered(3, 10)] if len(error.value.taken) else pending
        pending[0], pending[1] = pending[1], pending[0]
    output.open()
    with pytest.raises(OutputError) as error:
        output.send(pending)
    assert not error.value.retryable
    assert list(error.value.refused) == [1]
    assert error.value.taken == {0, 2, 3}


def test_a_receiver_that_refuses_everything_is_tried_again(receiver, output):
    receiver(lambda txnr, data, self: rsp(txnr, b"500 full"))
    for _ in range(5):
        output.open()
        with pytest.raises(OutputError, match="500 full") as error:
            output.send(numbered(3))
        assert error.value.retryable
        assert not error.value.refused
        output.close()


@pytest.mark.parametrize(
    ("opening", "reason"),
    [
        (b"500 go away", "500 go away"),
        (b"200 OK\nrelp_version=0\ncommands=eventlog", "does not offer"),
        (b"200 OK\ncommands=syslog", "does not offer"),
        (b"200 OK", "does not offer"),
        (b"2000 OK\nrelp_version=0\ncommands=syslog", "does not open"),
        ((b"2 rsp 6 200 OK\n",), "does not open"),
        ((b"1 syslog 6 200 OK\n",), "does not open"),
        ((b"0 serverclose 0\n",), "does not open"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "not RELP"),
        ((b"1 rsp 5000 " + b"x" * 5000 + b"\n",), "5000 bytes"),
        ((b"1 rsp 6 200 OKx",), "does not end"),
        ((b"1 rsp 6\n",), "no data"),
        ((b"x" * 100,), "not RELP"),
        ((b"\n",), "not RELP"),
        ((b"01 rsp 0\n",), "not RELP"),
        ((b"-1 rsp 0\n",), "not RELP"),
        ((b"1 rsp 9999999999 x\n",), "not RELP"),
    ],
)
def test_a_session_that_cannot_be_opened_is_an_error(receiver, output, opening, reason):
    receiver(opening=opening)
    with pytest.raises(OutputError, match=reason) as error:
        output.open()
    assert error.value.retryable
    with pytest.raises(OutputError, match="not connected"):
        output.send(numbered(1))


def test_a_receiver_that_says_nothing_costs_the_time_out(server, output):
    output._timeout_s = 0.1
    with pytest.raises(OutputError, match="timed out"):
        output.open()


def test_an_answer_that_never_ends_costs_the_time_out(receiver, output):
    output._timeout_s = 0.2
    receiver(lambda txnr, data, self: b"2 rsp 40 200")
    output.open()
    with pytest.raises(OutputError, match="timed out"):
        output.send(numbered(1))


def test_a_receiver_that_drips_answers_is_given_up(receiver, output, monkeypatch):
    """Each answer alone is in time; after ten time-outs the batch ends, what was acknowledged is taken."""
    now_s = [0.0]
    receiver()
    output.open()
    answers = (Answer(txnr, "rsp", b"200 OK") for txnr in range(2, 200))

    def slow(end_s):
        now_s[0] += output._timeout_s * 0.9
        if now_s[0] >= end_s:
            raise OutputError("timed out: the receiver does not answer")
        return [next(answers)]

    monkeypatch.setattr(relp, "monotonic_s", lambda: now_s[0])
    monkeypatch.setattr(output, "_wait", slow)
    with pytest.raises(OutputError, match="timed out") as error:
        output.send(numbered(128))
    assert error.value.taken == set(range(11))


@pytest.mark.parametrize(
    "answer", [rsp(MAX_TXNR), rsp(2) + rsp(2), b"2 syslog 0\n", b"garbage here\n", b"2 rsp 6 200 OK!"]
)
def test_an_answer_to_nothing_breaks_the_session(receiver, output, answer):
    receiver(lambda txnr, data, self: answer)
    output.open()
    with pytest.raises(OutputError, match=r"unexpected|not RELP") as error:
        output.send(numbered(300))
    assert error.value.retryable
    assert error.value.taken <= {0}


@given(
    st.lists(
        st.tuples(st.integers(0, MAX_TXNR), st.sampled_from(["rsp", "serverclose"]), st.binary(max_size=50))
    ),
    st.data(),
)
def test_answers_are_read_back_however_they_are_cut(answers, data):
    stream = b"".join(
        b"%d %s %d" % (txnr, command.encode(), len(text)) + (b" " + text if text else b"") + b"\n"
        for txnr, command, text in answers
    )
    reader, found = Answers(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert found == [Answer(*each) for each in answers]


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_nothing_that_a_receiver_says_does_more_than_raise_an_output_error(pieces):
    reader = Answers()
    try:
        for piece in pieces:
            for answer in reader.feed(piece):
                assert 0 <= answer.txnr <= MAX_TXNR
    except OutputError:
        return
    assert len(reader._rest) <= relp.MAX_ANSWER_BYTES + 60
