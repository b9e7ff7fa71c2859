"""Certificates for receivers and clients, made anew for each folder."""

from __future__ import annotations

import datetime
import hashlib
import ssl
from pathlib import Path

import trustme


class Certificates:
    """Two authorities, and what they have signed; every attribute is a PEM file.

    ``server`` is for localhost and 127.0.0.1; ``expired`` is the same, out of date; ``misnamed`` is for
    another host; ``stranger`` is like ``server``, from the authority ``other_ca`` that nobody trusts.
    ``NAME`` holds the chain, ``NAME_key`` the key.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        self._folder = folder
        ours, others = trustme.CA(), trustme.CA()
        self.ca = self._written("ca", ours.cert_pem.bytes())
        self.other_ca = self._written("other_ca", others.cert_pem.bytes())
        names = ("localhost", "127.0.0.1", "::1")
        past = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
        self.server, self.server_key = self._leaf("server", ours.issue_cert(*names))
        self.client, self.client_key = self._leaf("client", ours.issue_cert("kwsiem.example.net"))
        self.stranger, self.stranger_key = self._leaf("stranger", others.issue_cert(*names))
        self.misnamed, self.misnamed_key = self._leaf("misnamed", ours.issue_cert("siem.example.net"))
        self.expired, self.expired_key = self._leaf(
            "expired",
            ours.issue_cert(*names, not_before=past, not_after=past + datetime.timedelta(days=1)),
        )

    def fingerprint(self, name: str) -> str:
        """SHA-256 of a certificate as hex, as a pin has it."""
        pem = (self._folder / f"{name}.pem").read_text()
        first = pem[: pem.index("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----\n")]
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()

    def _leaf(self, name: str, leaf: trustme.LeafCert) -> tuple[str, str]:
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        return self._written(name, chain), self._written(f"{name}_key", leaf.private_key_pem.bytes())

    def _written(self, name: str, data: bytes) -> str:
        path = self._folder / f"{name}.pem"
        path.write_bytes(data)
        return str(path)
