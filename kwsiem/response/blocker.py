"""From a request to a block and to its end: guard, policy, firewall, decisions, audit.

Lives in the root process's loop. Requests are gathered and done together, the firewall first: a decision that
is not on disk yet when everything dies still ends by its time-out in the kernel.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from kwsiem import clock
from kwsiem.config import MAX_BLOCK_S, BlockingSettings
from kwsiem.errors import KwsiemError
from kwsiem.messages import BlockRequest
from kwsiem.response.decisions import Decision, Decisions, host_subject
from kwsiem.response.facts import Network, Protected, key_of, network_of, text_of
from kwsiem.response.firewall import Entry, Firewall
from kwsiem.response.guard import Guard, Request, Verdict, allowed_networks
from kwsiem.response.names import Names
from kwsiem.response.policy import escalated_s, seconds_left, subject, widened

log = logging.getLogger("kwsiem.blocks")
audit = logging.getLogger("kwsiem.audit")

MAX_QUEUE: Final = 20_000
GUARD_S: Final = 5.0
#: Sessions are looked at before blocks, at most so often: about 10 us for each process of the host.
SESSIONS_S: Final = 0.2
#: Addresses and routes are read when the kernel says that they changed, and every so often all the same.
ROUTES_S: Final = 60.0
DAMAGE_S: Final = 0.5
FORGET_S: Final = 3600.0
#: Above the rate a /24 with two offenders is blocked: so many others for each of them at most.
MOST_COLLATERAL: Final = 127
#: So long a repair may hold up the loop at a time.
WORK_S: Final = 0.02
#: So many repairs within so long are a quarrel with another program: the next look comes later.
MANY_REPAIRS: Final = 5
MANY_REPAIRS_S: Final = 10.0
CONTESTED_S: Final = 30.0
ARMED: Final = "armed"
_MAX_TEXT: Final = 256

Tell = Callable[[str, Mapping[str, Any]], None]


class Blocker:
    """Decides and acts on requests.

    ``firewall`` is None where mode is ``off`` or none can be used: then nothing is more than a dry run.
    ``cut`` ends the open connections of a blocked network.
    """

    def __init__(
        self,
        settings: BlockingSettings,
        guard: Guard,
        decisions: Decisions,
        firewall: Firewall | None,
        tell: Tell,
        *,
        cut: Callable[..., object] = lambda *_: None,
        names: Names | None = None,
        other_names: Iterable[str] = (),
    ) -> None:
        self.settings = settings
        self.guard = guard
        self.decisions = decisions
        self.counters: Counter[str] = Counter()
        self.firewall_error = ""
        self._firewall = firewall
        self._tell = tell
        self._cut = cut
        self._names = names or Names()
        self._queue: deque[BlockRequest] = deque()
        self._minute = (0.0, 0)
        self._confirm_by_s: float | None = None
        self._next_guard_s = self._next_damage_s = self._next_forget_s = 0.0
        self._throttled_told_s = -60.0
        self._routes_changed = False
        self._next_routes_s = 0.0
        self._sessions_s = -1.0
        self._repairing: Iterator[bool] | None = None
        self._repairs_s: deque[float] = deque(maxlen=MANY_REPAIRS)
        networks, allowed_names = allowed_networks(settings.allow)
        self._allowed_names = tuple(allowed_names)
        self.guard.protect("allow", networks)
        self._names.want((*allowed_names, *other_names))

    # -- mode ----------------------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """``off``, ``dry-run`` or ``on``: what is done now, not what the settings wish."""
        if self.settings.mode == "on" and not self.is_armed:
            return "dry-run"
        return "dry-run" if self.settings.mode == "on" and self._firewall is None else self.settings.mode

    @property
    def is_armed(self) -> bool:
        """Whether blocking was confirmed, or is within its time of trial."""
        return (
            self.settings.confirmed
            or self._confirm_by_s is not None
            or self.decisions.fact(ARMED) == "confirmed"
        )

    def start(self) -> None:
        """Sets, rules and all live decisions into the firewall, before anything else of the appliance."""
        self.decisions.ended(clock.wall_ns())
        if self.mode == "on":
            self._restore()
        elif self._firewall:
            # Of a trial that nobody confirmed, or of the time before the mode was changed.
            firewall = self._firewall
            self._guarded(lambda: firewall.close(remove=True))

    def close(self) -> None:
        """End; what is blocked stays blocked until its time is over."""
        self._names.close()
        if self._firewall:
            self._firewall.close(remove=False)
        self.decisions.close()

    def arm(self, confirm_within_s: float, *, without_allow_list: bool = False) -> dict[str, Any]:
        """Switch blocking on for a trial; without :meth:`confirm` in time everything is undone."""
        if self.settings.mode != "on":
            return {"error": "set blocking.mode: on in the settings first, or start with --block on"}
        if self._firewall is None:
            return {"error": f"no firewall can be used: {self.firewall_error}"}
        if not self.settings.allow and not without_allow_list:
            return {
                "error": "blocking.allow in the settings is empty: list the addresses you administer from,"
                " or say --no-allow-list"
            }
        self._confirm_by_s = clock.monotonic_s() + confirm_within_s
        self._restore()
        audit.info("armed", extra={"confirm_within_s": confirm_within_s})
        return {"mode": self.mode, "confirm_within_s": confirm_within_s}

    def confirm(self) -> dict[str, Any]:
        """Keep blocking on, also over restarts."""
        if not self.is_armed:
            return {"error": "nothing to confirm: the trial is over or was never begun (kwsiem blocks arm)"}
        self._confirm_by_s = None
        self.decisions.set_fact(ARMED, "confirmed")
        audit.info("confirmed")
        return {"mode": self.mode}

    def disarm(self, reason: str = "by the operator") -> dict[str, Any]:
        """Back to dry-run; everything that is blocked is released."""
        self._confirm_by_s = None
        self.decisions.set_fact(ARMED, "")
        if self._firewall:
            self._guarded(self._firewall.flush)
        gone = self.decisions.remove([d.net for d in self.decisions if d.mode == "on"])
        audit.warning("disarmed", extra={"reason": reason, "released": len(gone)})
        return {"mode": self.mode, "released": len(gone)}

    # -- requests ------------------------------------------------------------------------------------

    def request(self, message: BlockRequest) -> None:
        """Take a request of the engine; done at the next :meth:`flush`."""
        self.counters["asked"] += 1
        if len(self._queue) >= MAX_QUEUE:
            self.counters["dropped"] += 1
            return
        self._queue.append(message)

    def withdraw(self, value: str, alert_id: str) -> None:
        """End the block that an alert asked for: what it was raised for has turned out to be nothing.

        Another alert's block of the same source, and the operator's, stay.
        """
        try:
            decision = self.decisions.covering(network_of(value))
        except ValueError:
            self.counters["invalid"] += 1
            return
        if decision and decision.origin == "rule" and decision.alert_id == alert_id:
            self._release([decision])

    def flush(self) -> None:
        """Judge and do all requests that wait."""
        if not self._queue:
            return
        self._look_again()
        requests = list(self._queue)
        self._queue.clear()
        if self.settings.mode == "off":
            self.counters["off"] += len(requests)
            return
        now_ns = clock.wall_ns()
        planned: dict[Network, Decision] = {}
        for message in requests:
            decision = self._judge(message, planned, now_ns)
            if decision:
                planned[decision.net] = decision
        self._carry_out(list(planned.values()))
        self._carry_out(self._wider(planned, now_ns))

    def _look_again(self) -> None:
        """What the guard must not know too late: routes that changed, and who has just logged in."""
        now_s = clock.monotonic_s()
        if now_s - self._sessions_s >= SESSIONS_S:
            self._sessions_s = now_s
            self.guard.refresh(("administrators",))
        if self._routes_changed:
            self._refresh_routes(now_s)

    def _refresh_routes(self, now_s: float) -> None:
        self._routes_changed = False
        self._next_routes_s = now_s + ROUTES_S
        if self.guard.refresh(("addresses", "gateways", "bridges")):
            self._release_protected()

    def _judge(
        self, message: BlockRequest, planned: Mapping[Network, Decision], now_ns: int
    ) -> Decision | None:
        """The decision that a request leads to, or None when it is refused or known."""
        try:
            address = network_of(message.value)
        except ValueError as error:
            self._refuse(message, Verdict(allowed=False, rule="invalid", detail=str(error)))
            return None
        if address.prefixlen != address.max_prefixlen or not 1 <= message.for_s <= MAX_BLOCK_S:
            detail = "a rule blocks one address for 1 s to 24 days"
            self._refuse(message, Verdict(allowed=False, rule="invalid", detail=detail))
            return None
        if self.decisions.covering(address) or subject(address) in planned or address in planned:
            self.counters["known"] += 1
            return None
        verdict, network = self._first_allowed(message, address)
        if not verdict.allowed:
            self._refuse(message, verdict)
            return None
        if not self._within_rate():
            reason = self._throttled()
            wider = self._instead(network)
            if wider is None:
                self._refuse(message, Verdict(allowed=False, rule="rate", detail=reason))
                return None
            network = wider
        offences = self.decisions.offences(network, now_ns - self.settings.forget_s * clock.NS_PER_S)
        for_s = min(MAX_BLOCK_S, escalated_s(message.for_s, offences, self.settings.escalation_s))
        return Decision(
            network=text_of(network),
            since_ns=now_ns,
            until_ns=now_ns + for_s * clock.NS_PER_S,
            for_s=for_s,
            mode=self.mode,
            origin="rule",
            rule_id=message.rule_id[:_MAX_TEXT],
            alert_id=message.alert_id[:_MAX_TEXT],
            evidence=message.evidence[:_MAX_TEXT],
            reason=message.reason[:_MAX_TEXT],
            offences=offences + 1,
        )

    def _instead(self, network: Network) -> Network | None:
        """Above the rate: a network of the source in which others are blocked, if the guard lets it."""
        wider = widened(
            network,
            lambda around: self.decisions.within(around) + 1,
            aggregate=2,
            collateral=MOST_COLLATERAL,
            widest=self._widest(network),
        )
        if wider == network or self.decisions.covering(wider) or self.guard.covers(key_of(wider)):
            return None
        return wider

    def _widest(self, network: Network) -> int:
        return self.settings.widest_ipv4 if network.version == 4 else self.settings.widest_ipv6

    def _first_allowed(self, message: BlockRequest, address: Network) -> tuple[Verdict, Network]:
        """The verdict about a source's own network; if that holds somebody protected, its address."""
        for network in dict.fromkeys((subject(address), address)):
            request = Request(network, message.evidence, message.spoofable)
            verdict = self.guard.verdict(request)
            if verdict.allowed:
                break
        return verdict, network

    def _wider(self, planned: Mapping[Network, Decision], now_ns: int) -> list[Decision]:
        """Networks to block since many within them offend, as far as the guard lets them."""
        found: dict[Network, Decision] = {}
        for network, decision in planned.items():
            if not host_subject(network) or not self.decisions.get(network):
                continue
            wider = widened(
                network,
                self.decisions.within,
                aggregate=self.settings.aggregate,
                collateral=self.settings.collateral,
                widest=self._widest(network),
            )
            if wider == network or wider in found or self.decisions.covering(wider):
                continue
            request = Request(wider, decision.evidence, spoofable=True)
            if self.guard.verdict(request).allowed:
                reason = f"{self.decisions.within(wider)} offenders in {wider}"
                found[wider] = Decision(
                    network=str(wider), since_ns=now_ns, until_ns=decision.until_ns, for_s=decision.for_s,
                    mode=self.mode, origin="rule", rule_id=decision.rule_id, alert_id=decision.alert_id,
                    evidence=decision.evidence, reason=reason,
                )  # fmt: skip
        return list(found.values())

    def _carry_out(self, decisions: Sequence[Decision]) -> dict[str, str]:
        """Firewall, disk, open connections, audit, events; gives what could not be blocked and why."""
        if not decisions:
            return {}
        failed: dict[str, str] = {}
        if self.mode == "on" and self._firewall:
            firewall = self._firewall
            entries = [Entry(d.network, d.for_s) for d in decisions]
            outcome = self._guarded(lambda: firewall.block(entries))
            failed = (
                dict.fromkeys((d.network for d in decisions), self.firewall_error)
                if outcome is None
                else dict(outcome)
            )
        done = [decision for decision in decisions if decision.network not in failed]
        try:
            self.decisions.put(done)
        except sqlite3.Error as error:
            log.error("blocks cannot be stored: %s", error)
            self.counters["not_stored"] += len(done)
        blocked = [decision.network for decision in done if decision.mode == "on"]
        if blocked and self.settings.cut_connections:
            self._cut(*blocked)
        for decision in done:
            self._told("blocked" if decision.mode == "on" else "would_block", decision)
        if failed:
            self.counters["failed"] += len(failed)
            reason = next(iter(failed.values()))
            log.error("%d blocks failed: %s", len(failed), reason)
            self._tell(
                "block.firewall",
                {
                    "event.action": "full" if "full" in reason else "failing",
                    "event.reason": reason[:_MAX_TEXT],
                },
            )
        return failed

    def _refuse(self, message: BlockRequest, verdict: Verdict) -> None:
        self.counters["refused"] += 1
        reason = f"{verdict.rule}: {verdict.detail}"[:_MAX_TEXT]
        audit.info(
            "refused",
            extra={
                "network": message.value[:64],
                "rule": message.rule_id[:_MAX_TEXT],
                "alert": message.alert_id[:_MAX_TEXT],
                "reason": reason,
            },
        )
        self._tell(
            "block.decision",
            {
                "source.address": message.value[:64],
                "event.action": "refused",
                "event.reason": reason,
                "rule.id": message.rule_id[:_MAX_TEXT],
            },
        )

    def _told(self, action: str, decision: Decision) -> None:
        """One line in the audit log and one event."""
        self.counters[action] += 1
        audit.info(
            action,
            extra={
                "network": decision.network,
                "for_s": decision.for_s,
                "rule": decision.rule_id,
                "alert": decision.alert_id,
                "evidence": decision.evidence,
                "reason": decision.reason,
                "origin": decision.origin,
                "offences": decision.offences,
            },
        )
        self._tell(
            "block.decision",
            {
                "source.address": decision.network,
                "event.action": action,
                "event.reason": decision.reason,
                "rule.id": decision.rule_id,
            },
        )

    def _within_rate(self) -> bool:
        """Whether this minute has room for one more block."""
        now_s = clock.monotonic_s()
        began_s, count = self._minute
        if now_s - began_s >= 60.0:
            began_s, count = now_s, 0
        self._minute = (began_s, count + 1)
        return count < self.settings.max_per_min

    def _throttled(self) -> str:
        """Tell once a minute that there are too many."""
        now_s = clock.monotonic_s()
        reason = f"more than {self.settings.max_per_min} blocks within a minute"
        if now_s - self._throttled_told_s >= 60.0:
            self._throttled_told_s = now_s
            self._tell("block.firewall", {"event.action": "throttled", "event.reason": reason})
        return reason

    # -- as time goes by -----------------------------------------------------------------------------

    def tick(self) -> None:
        """What is due: called several times a second."""
        now_s = clock.monotonic_s()
        if self._confirm_by_s is not None and now_s >= self._confirm_by_s:
            self.disarm("not confirmed in time")
            self._tell(
                "block.firewall", {"event.action": "rolled_back", "event.reason": "arming was not confirmed"}
            )
        if self._names.changed.is_set():
            self._names.changed.clear()
            self._follow_names()
        if now_s >= self._next_guard_s:
            self._next_guard_s = now_s + GUARD_S
            if self.guard.refresh(("resolvers", "dhcp", "administrators")):
                self._release_protected()
        if self._routes_changed or now_s >= self._next_routes_s:
            self._refresh_routes(now_s)
        if now_s >= self._next_damage_s and self.mode == "on":
            self._next_damage_s = now_s + DAMAGE_S
            self._look_for_damage()
        for decision in self.decisions.ended(clock.wall_ns()):
            self._told("ended", decision)
        if now_s >= self._next_forget_s:
            self._next_forget_s = now_s + FORGET_S
            self.decisions.forget_offenders(clock.wall_ns() - self.settings.forget_s * clock.NS_PER_S)

    def addresses_changed(self) -> None:
        """The kernel says that addresses or routes changed: the guard looks before the next block."""
        self._routes_changed = True

    def _follow_names(self) -> None:
        networks = []
        for name, addresses in self._names.addresses().items():
            rule = "allow list" if name in self._allowed_names else "receiver or time server"
            for address in addresses:
                try:
                    networks.append(Protected(network_of(address), rule, name))
                except ValueError:
                    continue
        if self.guard.protect("names", networks):
            self._release_protected()

    def _release_protected(self) -> None:
        """Who is protected from now on must not stay blocked."""
        found = [(decision, self.guard.covers(decision.key)) for decision in self.decisions]
        for decision, hit in found:
            if hit:
                log.warning("%s is protected now (%s), released", decision.network, hit.rule)
        self._release([decision for decision, hit in found if hit])

    def _release(self, decisions: Sequence[Decision]) -> None:
        if not decisions:
            return
        if self._firewall and any(decision.mode == "on" for decision in decisions):
            firewall = self._firewall
            self._guarded(lambda: firewall.release([decision.network for decision in decisions]))
        for decision in self.decisions.remove([d.net for d in decisions]):
            self._told("released", decision)

    def _look_for_damage(self) -> None:
        firewall = self._firewall
        if firewall is None:
            return
        found = self._guarded(firewall.damage)
        if not found:
            return
        log.error("the firewall was changed by somebody else: %s", found)
        self._repairing = self._steps(str(found)[:_MAX_TEXT])
        self.work()
        # Another program that insists on being first must not keep us busy for ever.
        now_s = clock.monotonic_s()
        self._repairs_s.append(now_s)
        if len(self._repairs_s) == MANY_REPAIRS and now_s - self._repairs_s[0] < MANY_REPAIRS_S:
            self._next_damage_s = now_s + CONTESTED_S
            log.error("the firewall is changed again and again, the next look is in %d s", CONTESTED_S)

    @property
    def busy(self) -> bool:
        """Whether a repair is under way: then :meth:`work` should be called again soon."""
        return self._repairing is not None

    def work(self) -> None:
        """Go on with a repair for WORK_S, so that requests of the engine are served in between."""
        end_s = clock.monotonic_s() + WORK_S
        while self._repairing is not None and clock.monotonic_s() < end_s:
            if self._guarded(lambda: next(self._repairing, None)) is None:  # type: ignore[arg-type]
                self._repairing = None

    def _steps(self, reason: str) -> Iterator[bool]:
        """A repair in steps of a few ms; told when it is done."""
        firewall = self._firewall
        assert firewall
        began_ns = clock.wall_ns()
        for _ in firewall.repair_steps(self._entries()):
            yield True
        # A repair takes out what it was not told of: what was blocked meanwhile.
        firewall.block(self._entries(began_ns))
        self.counters["repaired"] += 1
        self._tell("block.firewall", {"event.action": "repaired", "event.reason": reason})

    def _restore(self) -> None:
        """Sets and rules, and every live decision with the time that is left; those of a dry run too."""
        firewall = self._firewall
        assert firewall
        began_s = clock.monotonic_s()
        entries = self._entries()
        self._guarded(lambda: firewall.repair(entries))
        took_s = round(clock.monotonic_s() - began_s, 3)
        log.info("blocks restored", extra={"blocks": len(entries), "took_s": took_s})

    def _entries(self, since_ns: int = 0) -> list[Entry]:
        """Every live decision with the time that is left, but for those whose source is protected now."""
        now_ns = clock.wall_ns()
        live = [
            (d, seconds_left(d.until_ns, d.for_s, now_ns))
            for d in self.decisions
            if d.mode == "on" and d.since_ns >= since_ns
        ]
        return [Entry(d.network, left_s) for d, left_s in live if left_s and not self.guard.covers(d.key)]

    def _guarded(self, act: Callable[[], Any]) -> Any:
        """Do something to the firewall; None when it failed, which is remembered and told once."""
        try:
            result = act()
        except (OSError, KwsiemError, ValueError) as error:
            if not self.firewall_error:
                log.error("firewall: %s", error)
                self._tell(
                    "block.firewall", {"event.action": "failing", "event.reason": str(error)[:_MAX_TEXT]}
                )
            self.firewall_error = str(error)[:_MAX_TEXT] or type(error).__name__
            return None
        self.firewall_error = ""
        return result

    # -- what people ask -----------------------------------------------------------------------------

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to ``{"command": "blocks", "verb": …}`` of the control socket."""
        verb = request.get("verb")
        if verb == "list":
            return self._list(str(request.get("after", "")), _bounded(request.get("limit"), 500))
        if verb == "add":
            return self._add_all(request.get("entries"))
        if verb in {"remove", "explain"}:
            try:
                network = network_of(str(request.get("network", "")))
            except ValueError as error:
                return {"error": str(error)}
            self._look_again()
            return self._remove(network) if verb == "remove" else self._explain(network)
        if verb == "arm":
            within_s = _bounded(request.get("confirm_within_s"), 86_400)
            return self.arm(within_s, without_allow_list=request.get("without_allow_list") is True)
        if verb == "confirm":
            return self.confirm()
        if verb == "disarm":
            return self.disarm()
        return {"error": f"unknown verb {verb!r}: list, add, remove, explain, arm, confirm, disarm"}

    def status(self) -> dict[str, Any]:
        """For ``kwsiem status``."""
        return {
            "mode": self.mode,
            "wanted": self.settings.mode,
            "armed": self.is_armed,
            "confirm_in_s": None
            if self._confirm_by_s is None
            else round(self._confirm_by_s - clock.monotonic_s()),
            "blocks": len(self.decisions),
            "counters": dict(self.counters),
            "firewall_error": self.firewall_error,
            "guard": {
                "protected": len(self.guard.protected()),
                "degraded": dict(self.guard.degraded),
                "names_failing": dict(self._names.failing()),
            },
        }

    def _list(self, after: str, limit: int) -> dict[str, Any]:
        now_ns = clock.wall_ns()
        chosen = sorted((d for d in self.decisions if d.network > after), key=lambda d: d.network)[:limit]
        return {
            "mode": self.mode,
            "total": len(self.decisions),
            "blocks": [
                {
                    "network": d.network, "mode": d.mode, "origin": d.origin, "since": clock.iso(d.since_ns),
                    "until": clock.iso(d.until_ns), "left_s": seconds_left(d.until_ns, d.for_s, now_ns),
                    "for_s": d.for_s, "rule": d.rule_id, "alert": d.alert_id, "evidence": d.evidence,
                    "reason": d.reason, "offences": d.offences,
                }
                for d in chosen
            ],
        }  # fmt: skip

    def _add_all(self, entries: Any) -> dict[str, Any]:
        """Blocks that the operator wants; the guard judges them like any other."""
        if self.settings.mode == "off":
            return {"error": "blocking is off (blocking.mode in the settings)"}
        self._look_again()
        results: list[dict[str, Any]] = []
        decisions = []
        now_ns = clock.wall_ns()
        for entry in entries if isinstance(entries, list) else []:
            text = str(entry.get("network", "")) if isinstance(entry, dict) else ""
            try:
                network = network_of(text)
            except ValueError as error:
                results.append({"network": text[:64], "blocked": False, "reason": str(error)})
                continue
            verdict = self.guard.verdict(Request(network, "proven"))
            if not verdict.allowed:
                results.append(
                    {"network": text, "blocked": False, "reason": f"{verdict.rule}: {verdict.detail}"}
                )
                continue
            for_s = _bounded(entry.get("for_s"), MAX_BLOCK_S)
            shown = text_of(network)
            decisions.append(
                Decision(
                    network=shown, since_ns=now_ns, until_ns=now_ns + for_s * clock.NS_PER_S, for_s=for_s,
                    mode=self.mode, origin="operator", evidence="operator",
                    reason=str(entry.get("reason", ""))[:_MAX_TEXT],
                )
            )  # fmt: skip
            results.append({"network": shown, "blocked": True, "mode": self.mode, "for_s": for_s})
        failed = self._carry_out(decisions)
        for result in results:
            if result["network"] in failed:
                result |= {"blocked": False, "reason": failed[result["network"]]}
        return {"results": results}

    def _remove(self, network: Network) -> dict[str, Any]:
        decision = self.decisions.get(network)
        if decision is None:
            wider = self.decisions.covering(network)
            hint = f"; it is within {wider.network}, which is" if wider else ""
            return {"error": f"{network} is not blocked{hint}"}
        self._release([decision])
        return {
            "removed": decision.network,
            "left_s": seconds_left(decision.until_ns, decision.for_s, clock.wall_ns()),
        }

    def _explain(self, network: Network) -> dict[str, Any]:
        verdicts = {grade: self.guard.verdict(Request(network, grade)) for grade in ("proven", "spoofable")}
        decision = self.decisions.covering(network)
        since_ns = clock.wall_ns() - self.settings.forget_s * clock.NS_PER_S
        return {
            "network": str(network),
            "mode": self.mode,
            **{
                grade: {"allowed": verdict.allowed, "rule": verdict.rule, "detail": verdict.detail}
                for grade, verdict in verdicts.items()
            },
            "blocked_by": decision.network if decision else None,
            "offences": self.decisions.offences(subject(network), since_ns),
        }


def _bounded(value: Any, most: int) -> int:
    """A whole number of a request, 1 to ``most``."""
    return max(1, min(value, most)) if isinstance(value, int) and not isinstance(value, bool) else most
