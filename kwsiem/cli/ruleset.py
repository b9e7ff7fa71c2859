"""The compiled rules, for commands that need them; apart because what compiles them takes 10 MB of memory."""

from __future__ import annotations

from pathlib import Path

from kwsiem.config import Settings
from kwsiem.errors import ConfigError, RuleFileError
from kwsiem.rules.files import read_rule_files
from kwsiem.rules.load import load_rules
from kwsiem.rules.model import RuleSet
from kwsiem.rules.testing import Judge, run_tests
from kwsiem.sensor.catalog import Catalog


def rules_of(settings: Settings, catalog: Catalog, judge: Judge = run_tests) -> RuleSet:
    """The compiled rules of the settings' rule files; raises ConfigError with every problem.

    ``judge`` runs their tests; see :func:`~kwsiem.rules.load.load_rules`.
    """
    sources = read_rule_files(Path(settings.rules), Path(settings.rules_dir))
    try:
        return load_rules(sources, catalog.kinds(), judge)
    except RuleFileError as error:
        raise ConfigError(str(error)) from None
