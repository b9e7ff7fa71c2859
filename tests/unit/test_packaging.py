"""The files in packaging/ for operators and receivers: complete, and right for what kwsiem sends."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from kwsiem.alert import LEVELS
from kwsiem.blocking import blocks_path
from kwsiem.config import Settings, parse_settings
from kwsiem.dashboard.token import folder_of
from kwsiem.document import ECS_FIELDS, document
from kwsiem.formats import cef, compact
from kwsiem.formats.digest import digest
from kwsiem.output_settings import OUTPUT_TYPES, type_of
from kwsiem.secret import read_env

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
HOSTILE = 'a=b \\ c | d "q" ]x\ncs1=forged \\= rt=1 é \\'


# settings and secrets --------------------------------------------------------------------------------


def uncommented(text: str) -> str:
    """The settings file with its examples switched on: lines with a key, not those with a sentence."""
    return re.sub(r"^#(?=(  |[a-z_]+:))", "", text, flags=re.MULTILINE)


def test_the_settings_file_is_taken_as_it_is_shipped():
    settings = parse_settings("kwsiem.yaml", (PACKAGING / "kwsiem.yaml").read_bytes())
    assert [type_of(output) for output in settings.outputs] == ["console", "file"]


def test_the_settings_file_has_an_example_of_every_type_that_is_taken():
    text = (PACKAGING / "kwsiem.yaml").read_text()
    body, shared = text.split("# Every output may have these", 1)
    keys, examples = shared.split("# A page for each", 1)
    settings = parse_settings("kwsiem.yaml", uncommented(f"{body}# A page{examples}").encode())
    assert {type_of(output) for output in settings.outputs} == set(OUTPUT_TYPES)
    # The keys that all have, with their defaults.
    some = uncommented(keys.split("\n", 1)[1])
    (plain,) = parse_settings("x", b"outputs:\n  - {name: a, type: console}\n").outputs
    (full,) = parse_settings("x", f"outputs:\n  - name: a\n    type: console\n{some}".encode()).outputs
    assert full == plain
    assert set(re.findall(r"^    (\w+):", some, re.MULTILINE)) == {
        "level", "rules", "tags", "extra", "rate_per_min", "max_age_s", "timeout_s",
    }  # fmt: skip


def test_commented_defaults_are_the_defaults():
    text = (PACKAGING / "kwsiem.yaml").read_text().split("\noutputs:")[0]
    settings = parse_settings("kwsiem.yaml", uncommented(text).encode())
    ours = parse_settings("x", b"user: kwsiem\n")
    for name in (
        "user",
        "state_dir",
        "runtime_dir",
        "log_level",
        "bpftrace",
        "env_file",
        "history_alerts",
        "outbox_max_bytes",
    ):
        assert f"\n#{name}: " in text
        assert getattr(settings, name) == getattr(ours, name)


def test_the_example_of_secrets_names_each_one_that_settings_and_pages_name(tmp_path):
    text = (PACKAGING / "env.example").read_text()
    assert read_env(PACKAGING / "env.example") == {}, "nothing is set as it is shipped"
    path = tmp_path / "env"
    path.write_text(re.sub(r"^#(?=[A-Z_]+=)", "", text, flags=re.MULTILINE))
    known = read_env(path)
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "outputs").glob("*.md"))
    named = set(re.findall(r"_secret: ([A-Z_]+)", (PACKAGING / "kwsiem.yaml").read_text() + pages))
    defaults = {
        value
        for cls in OUTPUT_TYPES.values()
        for field in msgspec.structs.fields(cls)
        if field.name.endswith("_secret") and (value := field.default)
    }
    assert named | defaults <= set(known)
    assert all(known.values())


# Elasticsearch, OpenSearch ---------------------------------------------------------------------------

#: Fields of the template that ECS knows but kwsiem does not send (the pipeline and the stream add them).
ADDED = {
    "data_stream.type", "data_stream.dataset", "data_stream.namespace", "event.ingested", "labels",
    "source.geo.city_name", "source.geo.country_iso_code", "source.geo.country_name", "source.geo.location",
    "source.as.number", "source.as.organization.name",
}  # fmt: skip
#: ECS type -> what takes its place in OpenSearch.
OPENSEARCH = {
    "match_only_text": "text", "wildcard": "keyword", "constant_keyword": "keyword", "flattened": "flat_object",
}  # fmt: skip


def leaves(node: dict, prefix: str = "") -> dict[str, dict]:
    found: dict[str, dict] = {}
    for name, entry in node.get("properties", {}).items():
        if "properties" in entry:
            found |= leaves(entry, f"{prefix}{name}.")
        else:
            found[prefix + name] = entry
    return found


def mapping(name: str) -> dict[str, dict]:
    return leaves(json.loads((PACKAGING / "elasticsearch" / name).read_text())["template"]["mappings"])


def test_the_index_template_maps_every_field_as_ecs_has_it():
    rows = csv.DictReader((Path(__file__).parent / "ecs_fields.csv").read_text().split("\n"))
    wanted = {row["field"]: row["type"] for row in rows}
    found = {name: entry["type"] for name, entry in mapping("index-template.json").items()}
    assert {name: found.get(name) for name in wanted} == wanted
    assert {name for name in found if not name.startswith("kwsiem.")} == set(wanted) | ADDED
    assert set(ECS_FIELDS) <= set(found)


def test_opensearch_gets_the_same_fields_with_types_that_it_has():
    ours, theirs = mapping("index-template.json"), mapping("opensearch-index-template.json")
    assert {n: OPENSEARCH.get(e["type"], e["type"]) for n, e in ours.items()} == {
        n: e["type"] for n, e in theirs.items()
    }


@pytest.mark.parametrize("name", ["index-template.json", "opensearch-index-template.json"])
def test_every_fact_of_real_alerts_has_a_place_in_the_index(name, make_alert):
    known = mapping(name)
    fields = {
        "source.ip": "192.0.2.7",
        "user.name": "root",
        "process.pid": 7,
        "pam.result": 7,
        "own.deep.fact": "x",
    }
    alert = make_alert(fields=fields, block={"value": "192.0.2.7", "for_s": 60}, falsepositives=["none"])
    summed = digest([document(make_alert(number=number)) for number in range(2)])

    def places(node: dict, prefix: str = ""):
        for key, value in node.items():
            if f"{prefix}{key}" in known:
                continue  # a leaf, or an object that is stored whole
            if isinstance(value, dict):
                yield from places(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    assert list(places(document(alert))) == []
    assert list(places(summed)) == []


@pytest.mark.parametrize("kind", ["", "opensearch-"])
def test_the_template_names_the_pipeline_and_the_page_installs_both(kind):
    template = json.loads((PACKAGING / "elasticsearch" / f"{kind}index-template.json").read_text())
    assert template["index_patterns"] == ["logs-kwsiem.alert-*"]
    assert template["data_stream"] == {}
    assert template["template"]["mappings"]["dynamic"] is False
    pipeline = template["template"]["settings"]["index"]["default_pipeline"]
    page = (ROOT / "docs" / "outputs" / "elasticsearch.md").read_text()
    assert f"/_ingest/pipeline/{pipeline}" in page
    steps = json.loads((PACKAGING / "elasticsearch" / f"{kind}ingest-pipeline.json").read_text())
    known = mapping(f"{kind}index-template.json")
    for step in steps["processors"]:
        ((word, what),) = step.items()
        assert word in ({"set"} if kind else {"set", "geoip", "rename"})
        if word != "geoip":
            assert what.get("target_field", what["field"]) in known


# Wazuh ----------------------------------------------------------------------------------------------


def wazuh_rule(line: str) -> ET.Element:
    """The rule that Wazuh would choose: of the rules that match, the one deepest in the tree."""
    event = json.loads(line)
    tree = ET.parse(PACKAGING / "wazuh" / "kwsiem_rules.xml").getroot()
    matched: set[str] = set()
    chosen = None
    for rule in tree.iter("rule"):
        parents = (rule.findtext("if_sid") or "").split(",")
        fields = {field.get("name"): field.text for field in rule.iter("field")}
        if parents != [""] and not matched & set(parents):
            continue
        if all(re.search(pattern, str(event.get(name, ""))) for name, pattern in fields.items()):
            matched.add(rule.get("id"))
            chosen = rule
    assert chosen is not None, "no rule matches"
    return chosen


@pytest.mark.parametrize(("level", "wanted"), list(zip(LEVELS, ("3", "5", "8", "12", "14"), strict=True)))
def test_wazuh_gives_a_real_alert_the_level_that_the_page_says(level, wanted, make_alert):
    alert = make_alert(level=level, fields={"user.name": HOSTILE}, reason=HOSTILE)
    rule = wazuh_rule(compact.render(document(alert)))
    assert rule.get("level") == wanted
    page = (ROOT / "docs" / "outputs" / "wazuh.md").read_text()
    assert f"| {level} | {rule.get('id')} | {wanted} |" in page
    named = set(re.findall(r"\$\((\w+)\)", rule.findtext("description") or ""))
    assert named <= set(json.loads(compact.render(document(alert))))


def test_wazuh_takes_the_end_of_an_incident_for_less_and_foreign_json_not_at_all(make_alert):
    assert (
        wazuh_rule(compact.render(document(make_alert(level="critical", state="close")))).get("id")
        == "100806"
    )
    with pytest.raises(AssertionError, match="no rule"):
        wazuh_rule('{"level": "critical", "state": "open", "incident": "x"}')


def test_wazuh_reads_the_file_that_the_page_has_kwsiem_write():
    path = ET.parse(PACKAGING / "wazuh" / "localfile.xml").findtext("localfile/location")
    page = (ROOT / "docs" / "outputs" / "wazuh.md").read_text()
    assert f"path: {path}\n" in page and "format: json" in page


# Splunk ---------------------------------------------------------------------------------------------


def stanzas(name: str) -> dict[str, dict[str, str]]:
    """A .conf file of Splunk: stanza -> key -> value."""
    found: dict[str, dict[str, str]] = {}
    for line in (PACKAGING / "splunk" / name).read_text().split("\n"):
        if line.startswith("["):
            current = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition(" = ")
            assert value and key not in current, line
            current[key] = value
    return found


def test_splunks_expressions_find_every_field_of_a_real_cef_line(make_alert):
    fields = {
        "source.ip": "2001:db8::1",
        "user.name": HOSTILE,
        "process.name": HOSTILE,
        "destination.ip": "192.0.2.1",
    }
    found = document(make_alert(title="a | b \\ c", fields=fields, reason=HOSTILE))
    line = f"<179>1 2026-01-02T03:04:06.123000Z gw01 kwsiem 1 r - {cef.render(found)}"
    transforms, props = stanzas("transforms.conf"), stanzas("props.conf")
    header = re.search(transforms["kwsiem_cef_header"]["REGEX"], line)
    assert header[4] == "tcp-port-scan" and header[6] == "8"
    assert re.sub(r"\\(.)", r"\1", header[5]) == "a | b \\ c"
    pairs = dict(re.findall(transforms["kwsiem_cef_pairs"]["REGEX"], line))
    plain = {key: re.sub(r"\\(.)", r"\1", value) for key, value in pairs.items()}
    assert plain["duser"] == plain["dproc"] == found["user"]["name"].strip()
    assert plain["c6a2"] == "2001:db8::1" and plain["dst"] == "192.0.2.1"
    assert plain["externalId"] == found["event"]["id"]
    assert plain["msg"] == found["message"].strip()
    assert plain["cs1"] == "tcp-port-scan" and "forged" not in plain
    assert set(props["kwsiem:cef"]["REPORT-kwsiem"].split(", ")) == set(transforms)
    stamp = re.search(props["kwsiem:cef"]["TIME_PREFIX"] + r"(\d{13})\b", line)
    assert stamp[1] == "1767323046123"


def test_splunks_names_are_those_of_the_document(make_alert):
    found = document(make_alert(fields={"source.ip": "192.0.2.7", "source.port": 1, "destination.ip": "192.0.2.1", "destination.port": 2, "user.name": "root"}))  # fmt: skip
    text = "\n".join(stanzas("props.conf")["kwsiem:alert"].values())
    for name in re.findall(r"[\"']([a-z_]+(?:\.[a-z_]+)+)[\"']", text):
        node = found
        for part in name.split("."):
            node = node[part]
        assert node


def test_purge_removes_every_folder_that_we_make():
    settings = Settings()
    (removed,) = re.findall(r"rm -rf (/etc/kwsiem .*)", (PACKAGING / "uninstall.sh").read_text())
    kept = folder_of(Path(settings.state_dir))
    assert {str(kept), str(blocks_path(settings).parent), settings.state_dir} <= set(removed.split())
    unit = (PACKAGING / "kwsiem-dashboard.service").read_text()
    assert f"\nStateDirectory={kept.name}\nStateDirectoryMode=0700\n" in unit and kept.parent == Path(
        "/var/lib"
    )
