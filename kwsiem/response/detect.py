"""Which firewall this host gets."""

from __future__ import annotations

import shutil
from typing import Final

from kwsiem.errors import ConfigError, UnavailableError
from kwsiem.response import ipset, nftables
from kwsiem.response.firewall import MOST_ENTRIES, Firewall, FirewallError
from kwsiem.response.ipset import IpsetFirewall
from kwsiem.response.nftables import NftFirewall
from kwsiem.response.pipe import ENVIRONMENT
from kwsiem.response.xtables import variant_in_use

SETTINGS: Final = ("auto", "iptables", "iptables-nft", "iptables-legacy", "nftables")

_WHERE: Final = {
    "ipset": "ipset",
    "iptables": "iptables",
    "ip6tables": "iptables",
    "stdbuf": "coreutils",
    "nft": "nftables",
}


def detect(setting: str, *, cut_answers: bool = False, most_entries: int = MOST_ENTRIES) -> Firewall:
    """The firewall for a setting: ``auto`` takes ipset with iptables where both are, else nftables.

    ``cut_answers``: drop also what answers connections that we (or hosts behind us) began. Raises
    UnavailableError naming what to install, ConfigError for an unknown setting.
    """
    if setting not in SETTINGS:
        raise ConfigError(f"firewall: {setting!r}, expected one of: {', '.join(SETTINGS)}")
    lacking = {"iptables": _iptables_lacks(setting), "nftables": _nft_lacks()}
    kind = setting.split("-", maxsplit=1)[0]
    if setting == "auto":
        kind = next((name for name, lacks in lacking.items() if not lacks), "")
        if not kind:
            raise UnavailableError(
                f"no firewall to block with: {lacking['iptables']}; {lacking['nftables']};"
                " try: apt install ipset iptables"
            )
    elif lacking[kind]:
        package = "nftables" if kind == "nftables" else "ipset iptables coreutils"
        raise UnavailableError(f"firewall {setting}: {lacking[kind]}; try: apt install {package}")
    if kind == "nftables":
        return NftFirewall(cut_answers=cut_answers, most_entries=most_entries)
    variant = setting.partition("-")[2] or variant_in_use()
    return IpsetFirewall(variant, cut_answers=cut_answers, most_entries=most_entries)


def _iptables_lacks(setting: str) -> str:
    """Why ipset with iptables cannot be used; empty when it can."""
    tools = ["ipset", "stdbuf"]
    variants = [setting.partition("-")[2]] if "-" in setting else []
    try:
        variants = variants or [variant_in_use()]
    except FirewallError as error:
        return str(error)
    tools += [
        f"{command}-{variant}-{what}"
        for variant in variants
        for command in ("iptables", "ip6tables")
        for what in ("save", "restore")
    ]
    missing = _missing(tools)
    return missing or ("" if ipset.usable() else "ipset does not work with this kernel (CONFIG_IP_SET)")


def _nft_lacks() -> str:
    return _missing(["nft"]) or nftables.usable()


def _missing(tools: list[str]) -> str:
    absent = [tool for tool in tools if not shutil.which(tool, path=ENVIRONMENT["PATH"])]
    return f"no {', '.join(absent)} (package {_WHERE.get(absent[0], 'iptables')})" if absent else ""
