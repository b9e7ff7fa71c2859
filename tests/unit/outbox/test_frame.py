"""A frame is found wherever it lies, one wrong bit in it is mended, anything else is refused."""

import random

import pytest

from kwsiem.outbox import frame


def made(number=7, body=b'{"a": "b"}' * 20, key="01KABCDEF"):
    return frame.encode(frame.ALERT, number, 8, key, body)


def test_a_frame_says_what_was_put_into_it():
    assert frame.decode(made()) == frame.Frame(frame.ALERT, 7, 8, "01KABCDEF", b'{"a": "b"}' * 20)
    assert frame.decode(made(key="", body=b"")) == frame.Frame(frame.ALERT, 7, 8, "", b"")


def test_any_single_wrong_bit_is_noticed_and_mended():
    data = made()
    for bit in range(8 * len(data)):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        assert frame.decode(bytes(wrong)) is None
        assert frame.repair(bytes(wrong)) == data


def test_other_damage_is_never_mended_into_something_else():
    chance = random.Random(5)
    data = made()
    for _ in range(2000):
        wrong = bytearray(data)
        for _ in range(chance.randrange(2, 20)):
            wrong[chance.randrange(len(wrong))] ^= 1 << chance.randrange(8)
        if bytes(wrong) != data:
            assert frame.repair(bytes(wrong)) in {None, data}


@pytest.mark.parametrize("seed", range(3))
def test_frames_are_found_in_garbage(tmp_path, seed):
    chance = random.Random(seed)
    frames = [made(number, chance.randbytes(chance.randrange(3000))) for number in range(50)]
    data = b"".join(chance.randbytes(chance.randrange(500)) + each for each in frames)
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb") as file:
        finder = frame.Finder(0)
        assert [found.number for _, found in finder.in_file(file.fileno())] == list(range(50))
    damaged = bytearray(data)
    at = data.index(frames[3])
    for bit in (at * 8 + 5, (data.index(frames[9]) + 24) * 8, (data.index(frames[20]) + 60) * 8):
        damaged[bit // 8] ^= 1 << bit % 8
    finder = frame.Finder(10)
    assert [found.number for found in finder.in_bytes(bytes(damaged))] == list(range(50))
    assert finder.repaired == 3


def test_frames_across_the_pieces_of_a_large_file_are_found_once(tmp_path, monkeypatch):
    monkeypatch.setattr(frame, "_CHUNK", 5000)
    path = tmp_path / "file"
    path.write_bytes(b"".join(made(number, b"y" * 1777) for number in range(100)))
    with path.open("rb") as file:
        assert [found.number for _, found in frame.Finder(0).in_file(file.fileno())] == list(range(100))


def test_no_text_of_an_attacker_looks_like_a_frame():
    with pytest.raises(UnicodeDecodeError):
        frame.MAGIC.decode()
    for half in (frame.MAGIC[:4], frame.MAGIC[4:]):
        with pytest.raises(UnicodeDecodeError):
            (b"a" + half + b"b").decode()
