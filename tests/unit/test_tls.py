import hashlib
import ssl

import pytest
import trustme

from kwsiem.errors import ConfigError, OutputError
from kwsiem.output_settings import SyslogSettings
from kwsiem.tls import check_pin, client_context, pinned


@pytest.fixture
def authority():
    return trustme.CA()


def settings(**keys):
    return SyslogSettings(name="siem", transport="tls", **keys)


def test_by_default_the_receiver_is_verified_by_name_with_tls_1_2_at_least():
    context = client_context(settings())
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_no_verification_only_when_told_and_said_loudly(caplog):
    context = client_context(settings(verify=False))
    assert context.verify_mode is ssl.CERT_NONE
    assert "output siem: the receiver is NOT verified" in caplog.text


@pytest.mark.parametrize("key", ["ca_file", "cert_file"])
def test_a_file_that_cannot_be_used_is_named(tmp_path, key):
    with pytest.raises(ConfigError, match=f"output 'siem': {key} .*absent.pem: No such file"):
        client_context(settings(**{key: str(tmp_path / "absent.pem")}))
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    with pytest.raises(ConfigError, match=f"output 'siem': {key} .*bad.pem: "):
        client_context(settings(**{key: str(bad)}))


def test_an_encrypted_key_is_an_error_and_asks_no_terminal(tmp_path, authority):
    from cryptography.hazmat.primitives import serialization

    leaf = authority.issue_cert("client.example.net")
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
    path = tmp_path / "key.pem"
    path.write_bytes(locked + leaf.cert_chain_pems[0].bytes())
    with pytest.raises(ConfigError, match="without a pass phrase"):
        client_context(settings(cert_file=str(path)))


def test_a_fingerprint_takes_the_place_of_authorities(authority):
    der = ssl.PEM_cert_to_DER_cert(authority.issue_cert("x").cert_chain_pems[0].bytes().decode())
    digits = hashlib.sha256(der).hexdigest()
    shown = ":".join(digits[i : i + 2] for i in range(0, 64, 2)).upper()
    chosen = settings(fingerprint=f"sha256:{shown.lower()}")
    assert pinned(chosen) == digits
    assert client_context(chosen).verify_mode is ssl.CERT_NONE
    check_pin(der, digits)
    with pytest.raises(OutputError, match=f"fingerprint {digits}, expected 00"):
        check_pin(der, "00" * 32)
    with pytest.raises(OutputError):
        check_pin(None, digits)


def test_a_malformed_fingerprint_is_an_error():
    with pytest.raises(ConfigError, match="64 hex digits, got 'ab:cd'"):
        client_context(settings(fingerprint="ab:cd"))
