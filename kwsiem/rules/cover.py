"""``covered-by``: the rules whose open incidents make a rule's own ones silent.

A rule can be covered by rules that are decided when it is or earlier, that have incidents which stay open,
and with which it shares a field to group by. What is unknown, or a circle, is a problem of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from kwsiem.rules.compile import Draft
from kwsiem.rules.model import MAX_CHAIN, MAX_COVERS, Rule, cover_depths
from kwsiem.rules.report import nearest
from kwsiem.yamltree import Scalar

PATH: Final = "covered-by"


def cover(drafts: Sequence[Draft], rules: Sequence[Rule]) -> list[Rule]:
    """The rules that may alert, each with the ids of those that cover it; problems go into the reports."""
    loud = {rule.id for rule in rules}
    named: dict[str, list[Draft]] = {}
    for draft in drafts:
        for name in {draft.id, draft.name} - {""}:
            named.setdefault(name, []).append(draft)
    links = {id(draft): _links(draft, named, loud) for draft in drafts}
    _tell_circles(drafts, links)
    for draft in drafts:
        found = tuple(dict.fromkeys(other.id for other in links[id(draft)]))
        if draft.rule is not None and found and not draft.broken:
            draft.rule = msgspec.structs.replace(draft.rule, covered_by=found)
    depth = cover_depths([draft.rule for draft in drafts if draft.rule is not None])
    for draft in drafts:
        if draft.rule is not None and depth[draft.rule.id] > MAX_CHAIN and not draft.broken:
            draft.refuse(draft.covered_by[0], PATH, f"at most {MAX_CHAIN} rules cover each other in a row")
    return [draft.rule for draft in drafts if draft.rule is not None and draft.rule.id in loud]


def _links(draft: Draft, named: dict[str, list[Draft]], loud: set[str]) -> list[Draft]:
    """The drafts that a draft says cover it, those apart that this host skips."""
    if len(draft.covered_by) > MAX_COVERS:
        draft.refuse(draft.covered_by[MAX_COVERS], PATH, f"at most {MAX_COVERS} rules")
    found = []
    for name in draft.covered_by:
        others = named.get(name.value, [])
        others = [other for other in others if other.report is draft.report] or others
        if not others:
            draft.refuse(name, PATH, f"no rule is called {name.value!r}{nearest(name.value, named)}")
        elif len(others) > 1:
            ids = " and ".join(other.id for other in others[:2])
            draft.refuse(name, PATH, f"{name.value!r} is the name of {ids}, use an id")
        elif others[0] is draft:
            draft.refuse(name, PATH, "a rule cannot cover itself")
        elif not others[0].skipped and not _told(draft, name, others[0], loud):
            found.append(others[0])
    return found


def _told(draft: Draft, name: Scalar, other: Draft, loud: set[str]) -> bool:
    """Whether the other rule cannot cover this one, which has been told, or is broken itself."""
    if draft.rule is None or other.rule is None:
        return True
    mine, theirs = draft.rule.correlation, other.rule.correlation
    problem = ""
    if other.rule.id not in loud:
        problem = "has no incidents of its own: other rules name it"
    elif not other.rule.suppress_ns:
        problem = "has no incidents that stay open, give it 'suppress'"
    elif not set(mine.group_by) & set(theirs.group_by):
        problem = f"groups by {', '.join(theirs.group_by) or 'nothing'}, this rule by none of it"
    elif theirs.settled and not mine.settled:
        problem = "is decided later (docs/rules.md, Exactly) than this rule"
    if problem:
        draft.refuse(name, PATH, f"rule {other.id} {problem}")
    return bool(problem)


def _tell_circles(drafts: Sequence[Draft], links: dict[int, list[Draft]]) -> None:
    """Rules that cover each other would all be silent."""
    done: set[int] = set()
    for draft in drafts:
        way: list[Draft] = []
        _walk(draft, links, way, done)


def _walk(draft: Draft, links: dict[int, list[Draft]], way: list[Draft], done: set[int]) -> None:
    """Depth first, without recursion: a way may be as long as there are rules, until that is told."""
    stack = [(draft, iter(links[id(draft)]))]
    way.append(draft)
    while stack:
        here, rest = stack[-1]
        following = next(rest, None)
        if following is None:
            stack.pop()
            way.pop()
            done.add(id(here))
        elif any(following is other for other in way):
            circle = [*way[next(n for n, other in enumerate(way) if other is following) :], following]
            said = f"rules cover each other in a circle: {' -> '.join(other.id for other in circle)}"
            if not following.broken:
                following.refuse(following.covered_by[0], PATH, said)
        elif id(following) not in done:
            stack.append((following, iter(links[id(following)])))
            way.append(following)
