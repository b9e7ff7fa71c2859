"""Every rule file of ours that a test in this folder loads must satisfy the JSON Schema too."""

import json
from functools import lru_cache

import pytest
from jsonschema import Draft202012Validator

from kwsiem.rules import load
from kwsiem.rules.schema import rules_schema
from kwsiem.yamltree import read_documents


@lru_cache(maxsize=64)
def _validator(kinds):
    return Draft202012Validator(rules_schema(dict(kinds)))


def schema_errors(data, kinds):
    """What the schema says against a rule file of ours; nothing for Sigma's documents."""
    validator = _validator(tuple(sorted(kinds.items())))
    documents = [document.plain() for document in read_documents("r.yaml", data)[0]]
    ours = [document for document in documents if isinstance(document, dict) and "rules" in document]
    return [
        f"{error.json_path}: {error.message}"
        for document in ours
        for error in validator.iter_errors(document)
    ]


@pytest.fixture(autouse=True)
def _what_loads_satisfies_the_schema(request, monkeypatch):
    """Wraps ``load_rules`` where a test module has imported it."""

    def loading(sources, kinds, *args, **options):
        ruleset = load.load_rules(sources, kinds, *args, **options)
        for source in sources:
            errors = schema_errors(source.data, kinds)
            assert not errors, json.dumps(errors[:5], indent=1)
        return ruleset

    if hasattr(request.module, "load_rules"):
        monkeypatch.setattr(request.module, "load_rules", loading)
