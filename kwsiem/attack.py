"""MITRE ATT&CK from Sigma tags: ``attack.discovery`` and ``attack.t1110.001`` to ECS ``threat.*``.

Tactic and technique names are those of ATT&CK for Enterprise; only the techniques that shipped rules use
have a name here, any other well-formed id is passed on without one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

#: The 14 tactics of ATT&CK for Enterprise by Sigma's word.
TACTICS: Final[Mapping[str, tuple[str, str]]] = {
    "reconnaissance": ("TA0043", "Reconnaissance"),
    "resource-development": ("TA0042", "Resource Development"),
    "initial-access": ("TA0001", "Initial Access"),
    "execution": ("TA0002", "Execution"),
    "persistence": ("TA0003", "Persistence"),
    "privilege-escalation": ("TA0004", "Privilege Escalation"),
    "defense-evasion": ("TA0005", "Defense Evasion"),
    "credential-access": ("TA0006", "Credential Access"),
    "discovery": ("TA0007", "Discovery"),
    "lateral-movement": ("TA0008", "Lateral Movement"),
    "collection": ("TA0009", "Collection"),
    "command-and-control": ("TA0011", "Command and Control"),
    "exfiltration": ("TA0010", "Exfiltration"),
    "impact": ("TA0040", "Impact"),
}
TECHNIQUES: Final[Mapping[str, str]] = {
    "T1018": "Remote System Discovery",
    "T1046": "Network Service Discovery",
    "T1071": "Application Layer Protocol",
    "T1071.004": "DNS",
    "T1078": "Valid Accounts",
    "T1110": "Brute Force",
    "T1110.001": "Password Guessing",
    "T1110.003": "Password Spraying",
    "T1498": "Network Denial of Service",
    "T1498.001": "Direct Network Flood",
    "T1498.002": "Reflection Amplification",
    "T1499": "Endpoint Denial of Service",
    "T1499.001": "OS Exhaustion Flood",
    "T1499.002": "Service Exhaustion Flood",
    "T1562": "Impair Defenses",
    "T1562.001": "Disable or Modify Tools",
    "T1562.004": "Disable or Modify System Firewall",
    "T1562.006": "Indicator Blocking",
    "T1572": "Protocol Tunneling",
    "T1595": "Active Scanning",
    "T1595.001": "Scanning IP Blocks",
}
_TACTIC_NAMES: Final = dict(TACTICS.values())
_ID: Final = re.compile(r"attack\.(?:(?P<tactic>ta\d{4})|(?P<technique>t\d{4})(?P<sub>\.\d{3})?)\Z", re.ASCII)


def threat(tags: Iterable[str]) -> dict[str, Any]:
    """The ECS ``threat`` object of a rule's tags; empty when no tag is ATT&CK's.

    A sub-technique names its technique too. Tags of other schemes are passed over.
    """
    tactics: dict[str, str] = {}
    techniques: dict[str, str] = {}
    subtechniques: dict[str, str] = {}
    for tag in tags:
        word = tag.lower().replace("_", "-")
        if word.removeprefix("attack.") in TACTICS and word.startswith("attack."):
            identifier, name = TACTICS[word.removeprefix("attack.")]
            tactics[identifier] = name
        elif found := _ID.match(word):
            if found["tactic"]:
                tactics[found["tactic"].upper()] = _TACTIC_NAMES.get(found["tactic"].upper(), "")
                continue
            technique = found["technique"].upper()
            techniques[technique] = TECHNIQUES.get(technique, "")
            if found["sub"]:
                subtechniques[technique + found["sub"]] = TECHNIQUES.get(technique + found["sub"], "")
    return _threat(tactics, techniques, subtechniques)


def _threat(tactics: dict[str, str], techniques: dict[str, str], subs: dict[str, str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if tactics:
        result["tactic"] = _ids_and_names(tactics)
    if techniques:
        result["technique"] = _ids_and_names(techniques)
    if subs:
        result["technique"]["subtechnique"] = _ids_and_names(subs)
    return {"framework": "MITRE ATT&CK", **result} if result else {}


def _ids_and_names(found: dict[str, str]) -> dict[str, list[str]]:
    names = [name for name in found.values() if name]
    return {"id": list(found), **({"name": names} if names else {})}
