"""Names of rules become rules: each is made after those that it names.

A correlation may name rules that stand later or in another file. So each rule is first read to a
:class:`~kwsiem.rules.compile.Draft`, and when all are there, :func:`resolve` makes rules of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as SequenceType
from typing import Final

from kwsiem.rules.compile import Draft, Part, make_rule
from kwsiem.rules.correlation import Named, Spec, UnfitError
from kwsiem.rules.model import Constant, Rule
from kwsiem.rules.report import nearest

#: Unknown names of a file for which the nearest is looked for.
MAX_HINTS: Final = 20


def resolve(drafts: SequenceType[Draft]) -> list[Rule]:
    """Make rules of drafts, each named one before those that name it; the rules that may alert.

    A rule that others name alerts only when one of them says ``generate``. Problems go into the report of the
    draft's file.
    """
    resolver = _Resolver(drafts)
    for draft in resolver.order():
        if draft.skipped is None:
            draft.report.where = draft.where
            try:
                resolver.compile(draft)
            except UnfitError as error:
                draft.skip(error.place, str(error))
    return [draft.rule for draft in drafts if draft.rule and not draft.skipped and not resolver.silent(draft)]


class _Resolver:
    """Knows all drafts by id and name."""

    def __init__(self, drafts: SequenceType[Draft]) -> None:
        self._drafts = drafts
        self._known: dict[str, list[Draft]] = {}
        for draft in drafts:
            for name in {draft.id, draft.name} - {""}:
                self._known.setdefault(name, []).append(draft)
        self._links: dict[int, list[Draft | None]] = {}
        self._named: set[int] = set()
        loud: set[int] = set()
        for draft in drafts:
            self._links[id(draft)] = [] if draft.skipped else self._link(draft)
            named = self._of_skipped(draft) if draft.skipped else self._links[id(draft)]
            found = {id(link) for link in named if link}
            self._named |= found
            if draft.spec and draft.spec.generate:
                loud |= found
        self._named -= loud

    def silent(self, draft: Draft) -> bool:
        """Whether others name it, and none says that it alerts all the same."""
        return id(draft) in self._named

    def _link(self, draft: Draft) -> list[Draft | None]:
        """The rules that a draft names; None stands for a selection of its own, or after a problem."""
        spec = draft.spec
        links: list[Draft | None] = []
        own = draft.detection.names if draft.detection else []
        for named in spec.named if spec else ():
            assert spec is not None
            if named.name in own or (draft.broken and named.name not in self._known):
                links.append(None)
                continue
            if spec.path == "sequence":
                draft.report.where = draft.where
                draft.report.choice(named.name, own, named.place, f"{spec.path}.steps", "selection")
                draft.broken = True
                links.append(None)
                continue
            found = self._lookup(draft, named, spec, own)
            if found is not None and found in links and spec.type != "sequence":
                draft.refuse(
                    named.place, spec.names_path, f"{named.name!r} stands twice: it is rule {found.id}"
                )
            if found is not None and found.spec is not None and spec.type == "sequential_test":
                message = f"rule {found.id} has a correlation, a sequential test looks at single events"
                draft.refuse(named.place, spec.path, message)
            links.append(found)
        if links and draft.detection and None not in links:
            place = draft.item.keys["detection"] if draft.item else draft.place
            draft.refuse(place, "detection", "is not used: the correlation names other rules only")
        return links

    def _of_skipped(self, draft: Draft) -> list[Draft]:
        """The rules that a skipped draft names; they are its parts and say nothing by themselves."""
        return [
            other
            for named in (draft.spec.named if draft.spec else ())
            for other in self._called(draft, named)
        ]

    def _called(self, draft: Draft, named: Named) -> list[Draft]:
        """The rules of that id or name, those of the same file before others."""
        found = self._known.get(named.name, [])
        return [other for other in found if other.report is draft.report] or found

    def _lookup(self, draft: Draft, named: Named, spec: Spec, own: SequenceType[str]) -> Draft | None:
        """The one rule of that id or name."""
        found = self._called(draft, named)
        path = spec.names_path
        if not found:
            what = "no rule" if draft.sigma else "no selection and no rule"
            # To look for the nearest of thousands takes a while: not for a whole set whose rules are missing.
            few = len(draft.report.problems) < MAX_HINTS
            hint = nearest(named.name, (*own, *self._known)) if few else ""
            message = f"{what} is called {named.name!r}{hint}"
            draft.refuse(named.place, path, message)
        elif len(found) > 1:
            ids = " and ".join(other.id for other in found[:2])
            draft.refuse(named.place, path, f"{named.name!r} is the name of {ids}, use an id")
        elif found[0] is draft:
            draft.refuse(named.place, path, "a rule cannot name itself")
        else:
            return found[0]
        return None

    # -- order

    def order(self) -> Iterator[Draft]:
        """The drafts, each after all that it names; those in a circle are told and left out."""
        waits = {
            id(draft): sum(link is not None for link in self._links[id(draft)]) for draft in self._drafts
        }
        users: dict[int, list[Draft]] = {}
        for draft in self._drafts:
            for link in self._links[id(draft)]:
                if link is not None:
                    users.setdefault(id(link), []).append(draft)
        ready = deque(draft for draft in self._drafts if not waits[id(draft)])
        while ready:
            draft = ready.popleft()
            yield draft
            for user in users.get(id(draft), ()):
                waits[id(user)] -= 1
                if not waits[id(user)]:
                    ready.append(user)
        self._tell_circles([draft for draft in self._drafts if waits[id(draft)]])

    def _tell_circles(self, rest: list[Draft]) -> None:
        told: set[int] = set()
        for draft in rest:
            way = [] if id(draft) in told else self._way_back(draft)
            if way:
                told.update(map(id, way))
                named = self._reference(draft, way[1] if len(way) > 1 else draft)
                circle = " -> ".join(other.id for other in (*way, draft))
                assert draft.spec is not None
                draft.refuse(
                    named.place, draft.spec.names_path, f"rules name each other in a circle: {circle}"
                )
            draft.broken = True

    def _way_back(self, draft: Draft) -> list[Draft]:
        """The drafts on the shortest way from one back to itself, itself first."""
        came: dict[int, Draft] = {}
        queue = deque([draft])
        while queue:
            here = queue.popleft()
            for link in self._links[id(here)]:
                if link is draft:
                    way = [here]
                    while way[0] is not draft:
                        way.insert(0, came[id(way[0])])
                    return way
                if link is not None and id(link) not in came:
                    came[id(link)] = here
                    queue.append(link)
        return []

    def _reference(self, draft: Draft, other: Draft) -> Named:
        assert draft.spec is not None
        pairs = zip(draft.spec.named, self._links[id(draft)], strict=True)
        return next(named for named, link in pairs if link is other)

    # -- rules

    def compile(self, draft: Draft) -> None:
        """Make the rule of a draft whose named rules are made."""
        parts = self._parts(draft, draft.spec) if draft.spec else []
        made = make_rule(draft, parts) if parts is not None else None
        draft.broken = draft.broken or made is None
        draft.rule = None if draft.broken else made

    def _parts(self, draft: Draft, spec: Spec) -> list[Part] | None:
        """What a correlation looks at; None after a problem (that has been told)."""
        always = Constant(value=True)
        if not spec.named:
            return (
                [Part(draft.id, spec.place, 1, draft.kinds, draft.predicate or always)]
                if draft.kinds
                else None
            )
        parts = []
        for named, link in zip(spec.named, self._links[id(draft)], strict=True):
            if link is None:
                if draft.detection is None or not draft.kinds:
                    return None
                predicate = draft.detection.selection(named.name)
                draft.broken = draft.broken or predicate is None
                parts.append(Part(named.name, named.place, named.count, draft.kinds, predicate or always))
                continue
            if link.skipped:
                reason = f"names rule {link.id}, which is skipped: {link.skipped.reason}"
                raise UnfitError(named.place, f"{spec.names_path}: {reason}")
            if link.rule is None:
                return None
            parts.append(
                Part(_name_of(link, named), named.place, named.count, link.kinds, link.rule.predicate, link)
            )
        return _told_apart(parts)


def _name_of(draft: Draft, named: Named) -> str:
    """What a step is called in reasons: a Sigma id says nothing to a reader, its name or title does."""
    return (draft.name or draft.title) if draft.sigma else named.name


def _told_apart(parts: list[Part]) -> list[Part]:
    """The same parts, those of one title called by their ids."""
    names = [part.name for part in parts]
    for part in parts:
        if names.count(part.name) > 1 and part.draft:
            part.name = part.draft.id
    return parts
