"""Which firewall is taken, and what is said where none can be used."""

import pytest

from kwsiem.errors import ConfigError, UnavailableError
from kwsiem.response import detect as module
from kwsiem.response.detect import detect

ALL = {"ipset", "stdbuf", "nft"} | {
    f"{command}-{variant}-{what}"
    for command in ("iptables", "ip6tables")
    for variant in ("nft", "legacy")
    for what in ("save", "restore")
}


@pytest.fixture
def host(monkeypatch):
    """A host that has these programs; the firewalls themselves are only named."""

    def host(*lacking):
        monkeypatch.setattr(
            module.shutil, "which", lambda tool, path: tool if tool in ALL - set(lacking) else None
        )
        monkeypatch.setattr(module, "variant_in_use", lambda: "legacy")
        monkeypatch.setattr(module.ipset, "usable", lambda: True)
        monkeypatch.setattr(module.nftables, "usable", lambda: "")
        monkeypatch.setattr(module, "IpsetFirewall", lambda variant, **settings: ("ipset", variant, settings))
        monkeypatch.setattr(module, "NftFirewall", lambda **settings: ("nftables", settings))

    return host


def test_auto_takes_ipset_and_the_variant_in_use(host):
    host()
    assert detect("auto", cut_answers=True)[:2] == ("ipset", "legacy")
    assert detect("iptables-nft")[1] == "nft"
    assert detect("nftables")[0] == "nftables"


@pytest.mark.parametrize("lacking", ["ipset", "stdbuf", "ip6tables-legacy-restore"])
def test_auto_takes_nftables_where_ipset_or_iptables_is_not_there(host, lacking):
    host(lacking)
    assert detect("auto")[0] == "nftables"
    with pytest.raises(UnavailableError, match=rf"{lacking}.*apt install ipset iptables"):
        detect("iptables")


def test_nothing_there_is_an_error_that_names_the_packages(host):
    host("ipset", "nft")
    with pytest.raises(UnavailableError, match=r"no ipset .*no nft .*apt install"):
        detect("auto")
    with pytest.raises(UnavailableError, match=r"apt install nftables"):
        detect("nftables")


def test_an_unknown_setting_names_the_known_ones(host):
    host()
    with pytest.raises(ConfigError, match=r"'pf'.*auto, iptables, .*nftables"):
        detect("pf")
