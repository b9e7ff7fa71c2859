"""What is refused before any command, and the book that tells what the kernel must still have."""

import random

import pytest

from kwsiem.response import firewall
from kwsiem.response.firewall import (
    MOST_TIMEOUT_S,
    Add,
    Book,
    Entry,
    FirewallError,
    KernelFirewall,
    parse,
    timeout_of,
)


@pytest.mark.parametrize(
    ("given", "text", "version", "prefix"),
    [
        ("198.51.100.7", "198.51.100.7", 4, 32),
        ("198.51.100.7/32", "198.51.100.7", 4, 32),
        ("198.51.100.0/24", "198.51.100.0/24", 4, 24),
        ("2001:DB8:0:0::1", "2001:db8::1", 6, 128),
        ("2001:db8:7::/64", "2001:db8:7::/64", 6, 64),
        ("2001:db8::1/128", "2001:db8::1", 6, 128),
    ],
)
def test_a_network_has_one_form(given, text, version, prefix):
    target = parse(given)
    assert (target.text, target.version, target.prefix) == (text, version, prefix)
    assert target.is_host == ("/" not in text)
    assert parse(target.text) == target


@pytest.mark.parametrize(
    "given",
    [
        "1.2.3.4; flush", "1.2.3.4\n", "\n1.2.3.4", " 1.2.3.4", "localhost", "", "1.2.3.4/33", "::/129", "0.0.0.0/0",
        "::/0", "0.0.0.0", "::", "1" * 5000, "fe80::1%eth0", "1.2.3.4-5", "1.2.3.4,5", "::ffff:1.2.3.4",
        "::ffff:0:0/96", "224.0.0.1", "239.0.0.0/8", "255.255.255.255", "ff02::1", "10.0.0.1/8", "01.2.3.4", "1.2.3",
        "\u0663.1.1.1", "1.2.3.0/255.255.255.0", None, 16909060, b"1.2.3.4", ["1.2.3.4"], True,
    ],
)  # fmt: skip
def test_what_cannot_be_a_source_is_refused(given):
    with pytest.raises(ValueError, match=r"."):
        parse(given)


@pytest.mark.parametrize("given", [0, -1, 1.0, "1", None, True])
def test_a_time_is_a_whole_number_of_seconds(given):
    with pytest.raises(ValueError, match="whole number"):
        timeout_of(Entry("192.0.2.1", given))


def test_a_time_is_cut_to_what_the_kernel_can_hold():
    assert timeout_of(Entry("192.0.2.1", 10**12)) == MOST_TIMEOUT_S


def test_the_book_knows_at_each_second_how_many_must_be_in():
    """Against a plain dictionary, with additions, prolongations, removals and a clock that jumps."""
    chance = random.Random(5)
    book, plain, now_s = Book(), {}, 1000.0
    for _ in range(20_000):
        text = str(chance.randrange(400))
        if chance.random() < 0.6:
            end_s = int(now_s) + chance.randrange(0, 60)
            book.put(text, end_s, now_s)
            plain[text] = end_s
        elif chance.random() < 0.5:
            book.drop(text, now_s)
            plain.pop(text, None)
        else:
            now_s += chance.choice([0.001, 0.3, 1.0, 5.0, 500.0 if chance.random() < 0.02 else 0.0])
        live = {each for each, end_s in plain.items() if end_s > now_s + 1}
        assert len(live) <= book.least(now_s) <= sum(end_s > now_s for end_s in plain.values())
        assert live <= set(book.texts())
    assert book.least(now_s + 10_000) == 0
    book.put("last", int(now_s) + 20_000, now_s + 10_000)
    assert len(book) <= 66


class Memory(KernelFirewall):
    """A kernel that is a dictionary; it refuses what ends in .13 and fails as a whole when ``down``."""

    name = "memory"

    def __init__(self):
        super().__init__()
        self.held, self.down, self.calls = {}, False, []

    def init(self):
        self.adopt()

    def entries(self):
        return [Entry(text, left_s) for text, left_s in self.held.items()]

    def set_of(self, target):
        return f"set{target.version}"

    def _add(self, adds):
        self._check(adds)
        good = [add for add in adds if not add.target.text.endswith(".13")]
        self.held.update({add.target.text: add.timeout_s for add in good})
        return {add.asked: "full" for add in adds if add not in good}

    def _delete(self, targets):
        self._check(targets)
        for target in targets:
            self.held.pop(target.text, None)
        return {}

    def _check(self, items):
        self.calls.append(len(items))
        if self.down:
            raise FirewallError("no answer")


def test_blocks_are_checked_sliced_and_answered_one_by_one():
    memory = Memory()
    many = [Entry(f"10.0.{number // 250}.{number % 250 + 1}", 60) for number in range(600)]
    refused = memory.block([Entry("nonsense\n", 5), *many, Entry("10.0.0.1/32", 90)])
    assert refused == {
        "'nonsense\\n'": "not an IP address or network",
        **{f"10.0.{n}.13": "full" for n in range(3)},
    }
    assert all(size <= firewall.SLICE for size in memory.calls)
    assert len(memory.held) == 597
    assert memory.held["10.0.0.1"] == 90
    assert len(memory.books["set4"]) == 597


def test_a_channel_that_is_down_is_the_reason_of_each_entry():
    memory = Memory()
    memory.down = True
    assert memory.block([Entry("192.0.2.1", 60), Entry("x", 60)]) == {
        "192.0.2.1": "no answer",
        "x": "not an IP address or network",
    }
    assert memory.release(["192.0.2.1"]) == {"192.0.2.1": "no answer"}
    assert not memory.books


def test_repair_touches_only_what_differs():
    memory = Memory()
    memory.held = {"192.0.2.1": 600, "192.0.2.2": 600, "192.0.2.3": 0, "192.0.2.9": 600}
    memory.init()
    memory.calls.clear()
    wanted = [
        Entry("192.0.2.1", 590),
        Entry("192.0.2.2", 3000),
        Entry("192.0.2.3", 60),
        Entry("192.0.2.4", 60),
    ]
    assert memory.repair(wanted) == {}
    assert memory.calls == [3, 1]
    assert memory.held == {"192.0.2.1": 600, "192.0.2.2": 3000, "192.0.2.3": 60, "192.0.2.4": 60}


def test_an_entry_is_on_its_way_under_the_name_it_was_asked_by():
    add = Add("192.0.2.1/32", parse("192.0.2.1/32"), 5)
    assert add.asked != add.target.text
