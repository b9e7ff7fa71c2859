import ipaddress

import pytest

from kwsiem.response.facts import network_of
from kwsiem.response.policy import escalated_s, seconds_left, subject, widened

STEPS = (3600, 86_400, 604_800)


@pytest.mark.parametrize(
    ("for_s", "offences", "wanted"),
    [
        (600, 0, 600),
        (600, 1, 3600),
        (600, 2, 86_400),
        (600, 3, 604_800),
        (600, 99, 604_800),
        (10_000, 1, 10_000),
    ],
)
def test_a_repeat_offender_stays_out_longer_each_time(for_s, offences, wanted):
    assert escalated_s(for_s, offences, STEPS) == wanted


def test_without_steps_every_time_is_the_rules_own():
    assert escalated_s(600, 5, ()) == 600


def test_an_ipv6_source_is_its_64():
    assert str(subject(network_of("2001:db8:1:2:3:4:5:6"))) == "2001:db8:1:2::/64"
    assert str(subject(network_of("2001:db8::/56"))) == "2001:db8::/56"
    assert str(subject(network_of("192.0.2.7"))) == "192.0.2.7/32"


def grown(texts, **options):
    """What the last of these addresses is widened to, when all are blocked."""
    networks = [network_of(text) for text in texts]
    chosen = {"aggregate": 8, "collateral": 8, "widest": 24, **options}

    def blocked(wider):
        return sum(n.version == wider.version and n.subnet_of(wider) for n in networks)

    return str(widened(networks[-1], blocked, **chosen))


def addresses(*lasts):
    return [f"198.51.100.{last}" for last in lasts]


def test_many_neighbours_become_a_network_within_the_collateral_budget():
    assert grown(addresses(*range(7))) == "198.51.100.6/32", "seven are not many"
    assert grown(addresses(*range(8))) == "198.51.100.0/26", "8 of 64: 7 others for each"
    assert grown(addresses(*range(29))) == "198.51.100.0/24"
    assert grown(addresses(*range(0, 232, 32))) == "198.51.100.224/32", "8 of 256: 31 others for each"
    assert grown(addresses(*range(29)), widest=27) == "198.51.100.0/27"
    assert grown(addresses(*range(29)), aggregate=0) == "198.51.100.28/32"


def test_the_budget_is_never_broken():
    for count in range(1, 256):
        network = ipaddress.ip_network(grown(addresses(*range(count))))
        if network.prefixlen < 32:
            assert network.num_addresses - min(count, network.num_addresses) <= 8 * count


def test_ipv6_grows_by_siblings():
    four = [f"2001:db8:0:{n:x}::/64" for n in range(4)]
    assert grown(four[:3], widest=48) == "2001:db8:0:2::/64"
    assert grown(four, widest=48) == "2001:db8::/56"
    sixteen = [f"2001:db8:0:{n << 8 | m:x}::/64" for n in range(4) for m in range(4)]
    assert grown(sixteen, widest=48) == "2001:db8::/48"
    assert grown(sixteen, widest=56) == "2001:db8:0:300::/56"


def test_the_time_that_is_left_survives_clocks():
    second = 10**9
    assert seconds_left(100 * second, 60, 50 * second) == 50
    assert seconds_left(100 * second, 60, 100 * second) == 0
    assert seconds_left(100 * second, 60, 99 * second + 1) == 1, "a begun second counts"
    assert seconds_left(100 * second, 60, -(10**6) * second) == 60, "the clock has gone back"
    assert seconds_left(100 * second, 60, 10**9 * second) == 0
