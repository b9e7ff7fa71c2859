"""The pages in docs/outputs: one form, settings that are taken, links that lead somewhere, code that works."""

import re
from pathlib import Path

import msgspec
import pytest

from kwsiem.config import parse_settings
from kwsiem.delivery import make_output, make_route
from kwsiem.output_settings import DEFAULT_FORMATS, OUTPUT_TYPES, type_of
from kwsiem.outputs.webhook import signature, signing_key

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "outputs"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
HEADINGS = ["What you get", "Settings of kwsiem", "Receiver", "Check", "Fields", "Limits and traps"]
INDEX = (FOLDER / "README.md").read_text()
CERTIFICATES = {"ca_file", "cert_file", "key_file"}
#: Values of the right form, by the key without ``_secret``.
SECRETS = {
    "token": "918273645:page-test", "chat_id": "-1009182736450", "url": "https://hooks.example.net/page-test",
    "signing": "whsec_cGFnZSB0ZXN0IHBhZ2UgdGVzdCBwYWdlIHRlc3Q=", "password": "page-test-pw", "api_key": "cGFnZTp0ZXN0",
}  # fmt: skip
SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_has_the_same_headings(page):
    text = page.read_text()
    assert re.findall(r"^# (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert "kwsiem outputs test " in text.split("## Check")[1].split("##")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_on_a_page_are_taken_as_they_stand(page):
    found = [block for block in blocks(page.read_text(), "yaml") if "outputs:" in block]
    assert found
    for block in found:
        for output in parse_settings(page.name, block.encode()).outputs:
            assert make_route(output).render
            if type_of(output) not in {"syslog", "gelf"}:
                # What only the output itself checks; certificates are not there.
                bare = msgspec.structs.replace(
                    output, **dict.fromkeys(CERTIFICATES & set(output.__struct_fields__), "")
                )
                assert make_output(bare, SECRETS).batch_alerts
            name = f"outputs test {output.name}"
            assert name in page.read_text() or page.stem == "elasticsearch"


@pytest.mark.parametrize("page", [*PAGES, FOLDER / "README.md"], ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            assert (FOLDER / path).exists(), target
            assert not anchor or f"## {anchor.capitalize()}" in (FOLDER / path).read_text()


def test_the_index_has_every_page_and_every_type():
    for page in PAGES:
        assert f"]({page.name})" in INDEX
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", INDEX, re.MULTILINE))
    assert list(rows) == list(dict.fromkeys(rows)) and set(rows) == set(OUTPUT_TYPES)
    for kind, row in rows.items():
        wanted = f"`{DEFAULT_FORMATS[kind]}`" if kind in DEFAULT_FORMATS else "for people"
        assert wanted in row, kind
    unconfirmed = {kind for kind, row in rows.items() if "| unconfirmed |" in row}
    assert unconfirmed == {"console", "syslog", "gelf"}
    shown = {
        type_of(o)
        for p in PAGES
        for b in blocks(p.read_text(), "yaml")
        for o in parse_settings("x", b.encode()).outputs
    }
    assert shown == set(OUTPUT_TYPES) - {"console"}, "each type has an example on a page"


def test_a_webhook_receiver_that_copies_the_page_takes_ours_and_nothing_else():
    (code,) = blocks((FOLDER / "webhook.md").read_text(), "python")
    assert len(code.strip().split("\n")) <= 13
    names: dict = {}
    exec(compile(code, "webhook.md", "exec"), names)
    body = msgspec.json.encode({"id": "01KDYH8W4C5N7Q2R8T0V6X9Z1B", "rule": "port_scan_v1", "severity": 7})
    sent_s = 1767323045
    headers = {
        "webhook-id": "01KDYH8W4C5N7Q2R8T0V6X9Z1B",
        "webhook-timestamp": str(sent_s),
        "webhook-signature": signature(signing_key("x", SECRET), "01KDYH8W4C5N7Q2R8T0V6X9Z1B", sent_s, body),
    }
    # The vector of an independent implementation.
    assert headers["webhook-signature"] == "v1,RAj5iBtlXDRNcWRQwRAKfdz8eh/Cm6I1szEBv3aQ/mY="
    names["verify"](SECRET, headers, body, sent_s + 299)
    rotated = {**headers, "webhook-signature": f"v1,AAAA {headers['webhook-signature']}"}
    names["verify"](SECRET, rotated, body, sent_s)
    for changed, late_s, content in (
        ({}, 301, body),
        ({}, -301, body),
        ({}, 0, body + b" "),
        ({"webhook-id": "another"}, 0, body),
        ({"webhook-timestamp": str(sent_s + 1)}, 0, body),
        ({"webhook-signature": "v1,AAAA"}, 0, body),
    ):
        with pytest.raises(ValueError, match=r"signature|old"):
            names["verify"](SECRET, {**headers, **changed}, content, sent_s + late_s)
