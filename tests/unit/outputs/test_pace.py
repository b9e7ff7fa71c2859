import pytest

from kwsiem.outputs.pace import Pace


def test_a_message_needs_a_token_of_each_bucket():
    pace = Pace([(1, 1.0), (3, 60.0)])
    now_s, sent = 0.0, []
    while now_s < 61.0:
        if pace.free(now_s):
            pace.take(1, now_s)
            sent.append(now_s)
        else:
            now_s += pace.wait_s(now_s)
    assert sent[:3] == pytest.approx([0.0, 1.0, 2.0])
    assert sent[3:] == pytest.approx([20.0, 40.0, 60.0])


def test_tokens_do_not_pile_up_beyond_the_bucket():
    pace = Pace([(5, 10.0)])
    pace.take(5, 0.0)
    assert pace.free(0.0) == 0
    assert pace.wait_s(0.0) == pytest.approx(2.0)
    assert pace.free(1e6) == 5


def test_a_clock_that_goes_back_gives_nothing_and_breaks_nothing():
    pace = Pace([(1, 1.0)])
    pace.take(1, 100.0)
    assert pace.free(50.0) == 0
    assert pace.free(51.0) == 1
