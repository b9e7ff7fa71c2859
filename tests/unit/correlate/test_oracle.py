"""The engine against a second evaluator; ``make fuzz`` does the same with 100,000 streams and more."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

import streams

#: Of each type; KWSIEM_FUZZ_STREAMS raises it.
STREAMS = int(os.environ.get("KWSIEM_FUZZ_STREAMS", "400"))


@pytest.mark.parametrize("kind", streams.TYPES)
def test_the_engine_says_what_the_oracle_says(kind):
    for seed in range(STREAMS):
        assert streams.compare(kind, seed) is None, f"make fuzz: type {kind}, seed {seed}"


@pytest.mark.parametrize("kind", streams.TYPES)
def test_there_is_something_to_say_in_most_streams(kind):
    """The comparison above would be worth nothing if nothing ever fired."""
    said = sum(bool(_alerts(kind, seed)) for seed in range(100))
    assert said > 25


def _alerts(kind: str, seed: int) -> list:
    rng = streams.random.Random(f"{kind} {seed}")
    made = streams.rule(rng, kind)
    return streams.run_oracle(made, streams.events(rng))
