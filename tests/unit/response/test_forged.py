"""The short form of tests/forged.py."""

from forged import run


def test_forged_sources_and_harmful_rules_block_nobody_that_is_protected(tmp_path):
    made = run(6_000, 7, tmp_path)
    assert made.asked > 1_000, "the rules do ask"
    assert made.host.counters["blocked"] > 100, "and others are blocked"
