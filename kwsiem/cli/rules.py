"""``kwsiem rules list|show|test|schema``: which rules there are, what they say, whether their tests pass."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem.attack import threat
from kwsiem.cli.common import (
    Subparsers,
    add_json,
    add_settings,
    catalog_of,
    command,
    paint,
    plain,
    print_json,
    settings_of,
    table,
)
from kwsiem.cli.progress import Progress
from kwsiem.cli.ruleset import rules_of
from kwsiem.errors import EXIT_CHECK_FAILED, EXIT_GOOD, EXIT_USAGE
from kwsiem.rules.duration import format_duration
from kwsiem.rules.explain import fires, looks_at, sentence, step_lines
from kwsiem.rules.files import read_rule_file
from kwsiem.rules.load import load_rules
from kwsiem.rules.model import Rule, RuleSet
from kwsiem.rules.report import Report, nearest
from kwsiem.rules.schema import rules_schema
from kwsiem.rules.source import Source
from kwsiem.rules.testing import Checked, Collector, RuleTest

_RULE_HELP: Final = "a rule's id, or a pattern such as 'tcp-*'"


def add(commands: Subparsers) -> None:
    """Add the commands."""
    parser = command(
        commands,
        "rules",
        "list, explain and test the rules, or print the schema of their file",
        [
            "kwsiem rules",
            "kwsiem rules show tcp-port-scan",
            "kwsiem rules test ./rules.yaml",
            "kwsiem rules schema > rules.schema.json",
        ],
        execute=_list,
        config=None,
        rules=None,
        probes=None,
        json=False,
    )
    parts = parser.add_subparsers(metavar="WHAT")
    _add_list(parts)
    _add_show(parts)
    _add_test(parts)
    _add_schema(parts)


def _add_list(parts: Subparsers) -> None:
    parser = command(parts, "list", "list the rules", ["kwsiem rules list --json"], execute=_list)
    add_settings(parser)
    add_json(parser)


def _add_show(parts: Subparsers) -> None:
    parser = command(
        parts,
        "show",
        "say in words what rules look at and when they fire",
        ["kwsiem rules show tcp-port-scan", "kwsiem rules show 'tcp-*' --rules ./rules.yaml"],
        execute=_show,
    )
    parser.add_argument("names", nargs="*", metavar="RULE", help=_RULE_HELP)
    add_settings(parser)
    add_json(parser)


def _add_test(parts: Subparsers) -> None:
    parser = command(
        parts,
        "test",
        "run the rules' own tests; exit 1 when one fails, 78 when a file does not load",
        [
            "kwsiem rules test",
            "kwsiem rules test tcp-port-scan",
            "kwsiem rules test ./rules.yaml 'ssh-*' --json",
        ],
        execute=_test,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="FILE|RULE",
        help=f"rule files in place of the configured ones, loaded together; {_RULE_HELP}",
    )
    add_settings(parser)
    add_json(parser)


def _add_schema(parts: Subparsers) -> None:
    parser = command(
        parts,
        "schema",
        "print the JSON Schema of rules.yaml, for editors; it knows this host's event kinds",
        [
            "kwsiem rules schema > rules.schema.json",
            "# then in the first line of rules.yaml: # yaml-language-server: $schema=rules.schema.json",
        ],
        execute=_schema,
    )
    add_settings(parser)
    add_json(parser)


# -- list and show -----------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> int:
    loaded = _load(options, [])
    if options.json:
        names = ("id", "level", "events", "title")
        print_json([{name: getattr(rule, name) for name in names} for rule in loaded.rules.values()])
        return EXIT_GOOD
    rows = [
        [rule.id, rule.level, " ".join(rule.events), str(loaded.tests(rule)), rule.title]
        for rule in loaded.rules.values()
    ]
    print(_plain_lines(table([["RULE", "LEVEL", "EVENTS", "TESTS", "TITLE"], *rows])))
    _print_skipped(loaded.ruleset)
    return EXIT_GOOD


def _show(options: argparse.Namespace) -> int:
    loaded = _load(options, [])
    rules = _chosen(loaded, options.names)
    if rules is None:
        return EXIT_USAGE
    if options.json:
        print_json(
            {
                "files": loaded.ruleset.files,
                "rules": [_as_json(rule, loaded) for rule in rules],
                "skipped": msgspec.to_builtins(loaded.ruleset.skipped),
            }
        )
        return EXIT_GOOD
    print("\n\n".join(_in_words(rule, loaded) for rule in rules))
    if not options.names:
        _print_skipped(loaded.ruleset)
    return EXIT_GOOD


def _in_words(rule: Rule, loaded: _Loaded) -> str:
    head = f"{paint(plain(rule.id), 'bold')} ({rule.level}): {plain(sentence(rule))}"
    ends = f"after {format_duration(rule.suppress_ns)} without a match" if rule.suppress_ns else "at once"
    lines = [
        ("title", rule.title),
        *(("step" if i == 0 else "", line) for i, line in enumerate(step_lines(rule))),
        ("incident", f"ends {ends}"),
        ("covered by", ", ".join(rule.covered_by)),
        ("asks to block", _block(rule)),
        ("alerts", "never itself: other rules name it" if loaded.is_silent(rule) else ""),
        ("about", " ".join(rule.description.split())),
        ("att&ck", ", ".join(f"{ident} {name}".strip() for ident, name in _attack(rule))),
        ("tags", ", ".join(rule.tags)),
        ("mistaken for", "; ".join(rule.falsepositives)),
        ("tests", str(loaded.tests(rule) or "none")),
    ]
    return "\n".join([head, *(_wrapped(name, plain(text)) for name, text in lines if text)])


def _block(rule: Rule) -> str:
    if rule.block is None:
        return ""
    forged = ", also on evidence that can be forged" if rule.block.spoofable else ""
    return f"{rule.block.field} for {format_duration(rule.block.for_ns)}{forged} (the guard decides)"


def _wrapped(name: str, text: str) -> str:
    """A named text in lines that a terminal holds; a word that is longer (a pattern) stays whole."""
    begin, indent = f"  {name:<14}", " " * 16
    spaces = len(text) - len(text.lstrip())
    return textwrap.fill(
        text.strip(),
        width=110,
        initial_indent=begin + " " * spaces,
        subsequent_indent=indent + " " * spaces,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _attack(rule: Rule) -> list[tuple[str, str]]:
    """Tactics and techniques of the rule's tags: id and name, the name empty when we do not know it."""
    found: dict[str, str] = {}
    for tag in rule.tags:
        one = threat([tag])  # of one tag at a time: a name that is missing leaves no gap
        technique = one.get("technique", {})
        for part in (one.get("tactic", {}), technique, technique.get("subtechnique", {})):
            found.update(zip(part.get("id", []), part.get("name", [""]), strict=False))
    return list(found.items())


def _as_json(rule: Rule, loaded: _Loaded) -> dict[str, Any]:
    whole: dict[str, Any] = msgspec.to_builtins(rule)
    return {
        **whole,
        "words": sentence(rule),
        "fires": fires(rule),
        "looks_at": looks_at(rule),
        "steps": step_lines(rule),
        "attack": [{"id": ident, "name": name} for ident, name in _attack(rule)],
        "silent": loaded.is_silent(rule),
        "tests": loaded.tests(rule),
    }


def _print_skipped(ruleset: RuleSet) -> None:
    """The Sigma rules that this host cannot evaluate, each with its reason."""
    if ruleset.skipped:
        print(f"\nskipped Sigma rules: {len(ruleset.skipped)}")
        print(_plain_lines(table([[f"  {s.place}", s.rule, s.reason] for s in ruleset.skipped])))


# -- test --------------------------------------------------------------------------------------------


def _test(options: argparse.Namespace) -> int:
    files = [name for name in options.names if _is_file(name)]
    loaded = _load(options, files)
    rules = _chosen(loaded, [name for name in options.names if name not in files])
    if rules is None:
        return EXIT_USAGE
    results = [loaded.checked[rule.id] for rule in rules if rule.id in loaded.checked]
    failed = sum(not outcome.passed for result in results for outcome in result.outcomes)
    if options.json:
        print_json(_tests_as_json(loaded.ruleset, results, failed))
    else:
        print(_tests_as_text(results, failed))
    return EXIT_CHECK_FAILED if failed else EXIT_GOOD


def _is_file(name: str) -> bool:
    """Whether an argument is meant as a file: a rule's id has no slash and does not end like that."""
    return "/" in name or name.endswith((".yaml", ".yml")) or Path(name).exists()


def _tests_as_json(ruleset: RuleSet, results: Sequence[Checked], failed: int) -> dict[str, Any]:
    amount = sum(len(result.outcomes) for result in results)
    return {
        "files": ruleset.files,
        "rules": [
            {
                "id": result.rule.id,
                "file": result.file,
                "tests": [
                    {**msgspec.to_builtins(outcome), "passed": outcome.passed} for outcome in result.outcomes
                ],
            }
            for result in results
        ],
        "without_tests": [result.rule.id for result in results if not result.outcomes],
        "passed": amount - failed,
        "failed": failed,
    }


def _tests_as_text(results: Sequence[Checked], failed: int) -> str:
    lines = []
    for result in results:
        if not result.outcomes:
            continue
        lines.append(plain(result.rule.id))
        for outcome in result.outcomes:
            if outcome.passed:
                lines.append(f"  {paint('pass', 'green')}  {plain(outcome.name)}")
                continue
            place = f"{result.file}:{outcome.line}"
            lines.append(f"  {paint('FAIL', 'red')}  {plain(f'{outcome.name}: {outcome} ({place})')}")
    without = [result.rule.id for result in results if not result.outcomes]
    if without:
        lines.append(f"without tests: {plain(', '.join(without))}")
    amount = sum(len(result.outcomes) for result in results)
    counts = f"{len(results)} rules, {amount} tests, {failed} failed, {len(without)} rules without tests"
    return "\n".join([*lines, paint(counts, "red" if failed else "green")])


# -- schema and what they share ----------------------------------------------------------------------


def _schema(options: argparse.Namespace) -> int:
    print_json(rules_schema(catalog_of(settings_of(options)).kinds()))
    return EXIT_GOOD


@dataclass(frozen=True)
class _Loaded:
    """The rules that run, those that only others look at, and how the tests of both ended."""

    ruleset: RuleSet
    checked: dict[str, Checked]

    @cached_property
    def rules(self) -> dict[str, Rule]:
        """All rules by id, in the order of the files, Sigma's own files last."""
        return {**{rule_id: checked.rule for rule_id, checked in self.checked.items()}, **self._alerting}

    @cached_property
    def _alerting(self) -> dict[str, Rule]:
        return {rule.id: rule for rule in self.ruleset.rules}

    def is_silent(self, rule: Rule) -> bool:
        """Whether a rule never alerts itself: others name it."""
        return rule.id not in self._alerting

    def tests(self, rule: Rule) -> int:
        """How many tests a rule has."""
        return len(self.checked[rule.id].outcomes) if rule.id in self.checked else 0


def _load(options: argparse.Namespace, files: Sequence[str]) -> _Loaded:
    """The configured rules, or those of the files; a test that fails refuses nothing.

    Raises ConfigError with every problem.
    """
    settings = settings_of(options)
    catalog = catalog_of(settings)
    collector = Collector()
    with Progress("testing rules", 0, "rules", wanted=not options.json) as bar:

        def judge(report: Report, rule: Rule, tests: list[RuleTest]) -> None:
            collector(report, rule, tests)
            bar.at(len(collector.rules))

        if files:
            sources = [Source(name, read_rule_file(Path(name))) for name in files]
            ruleset = load_rules(sources, catalog.kinds(), judge)
        else:
            ruleset = rules_of(settings, catalog, judge)
    return _Loaded(ruleset, collector.rules)


def _chosen(loaded: _Loaded, names: Sequence[str]) -> list[Rule] | None:
    """The rules of these names or patterns, all without any; None when one fits no rule, which is said."""
    rules = loaded.rules
    unknown = [name for name in names if not any(fnmatchcase(rule_id, name) for rule_id in rules)]
    for name in unknown:
        print(f"kwsiem: no rule {plain(name)!r}{nearest(name, rules)}", file=sys.stderr)
    if unknown:
        return None
    return [
        rule for rule_id, rule in rules.items() if not names or any(fnmatchcase(rule_id, n) for n in names)
    ]


def _plain_lines(text: str) -> str:
    """Several lines, each safe to show on a terminal."""
    return "\n".join(map(plain, text.split("\n")))
