"""Stage 6: where alerts wait, on disk, until every output has taken them; and the history of alerts.

SQLite in WAL mode with synchronous=FULL: :meth:`Outbox.put` commits a whole group of alerts at once and
returns when they are on disk. What outputs have settled is committed without waiting for the disk
(synchronous=NORMAL): a kill loses nothing of it, a power cut at worst sends some alerts twice, with the
same id.

What always holds, between any two statements of another process and after a kill at any point:

1. The ledger of each output balances: ``raised = delivered + waiting + dead + dropped + filtered``.
2. Sequence numbers have no gaps. An output's cursor moves over each alert exactly once, in the transaction
   that counts what became of it. What is settled behind the cursor has a row in ``ahead``.
3. What waits for an output is in ``alerts``. So an alert that is not there is damage, and is noticed by the
   next reading, whatever SQLite thinks of the file.
4. Each alert and each account is a frame (:mod:`kwsiem.outbox.frame`). None is given out whose CRC does not
   match; what a single wrong bit explains is mended; all else counts as dropped with the reason ``corrupt``.
5. A damaged file is replaced by a complete new one in which 1 to 4 hold (:mod:`kwsiem.outbox.salvage`).
   When in doubt an alert is sent again: a repeat is known by its id, a loss by nothing.
6. :meth:`Outbox.put` returns only when the alerts are on disk. What is held in memory instead, while the
   disk takes nothing (:mod:`kwsiem.outbox.held`), is not durable and never called so, unless every output
   has settled it.
"""

from kwsiem.outbox.box import HISTORY_ALERTS, MAX_BYTES, Outbox, balanced
from kwsiem.outbox.file import Page, read_behind, read_dead, read_ledger, recent_alerts
from kwsiem.outbox.held import HELD_ALERTS, HELD_BYTES
from kwsiem.outbox.history import Entry, History, Summary, Wanted
from kwsiem.outbox.tables import MAX_DEAD_BYTES, MAX_DEAD_LETTERS, Item, Ledger, Letter, Stored

__all__ = [
    "HELD_ALERTS",
    "HELD_BYTES",
    "HISTORY_ALERTS",
    "MAX_BYTES",
    "MAX_DEAD_BYTES",
    "MAX_DEAD_LETTERS",
    "Entry",
    "History",
    "Item",
    "Ledger",
    "Letter",
    "Outbox",
    "Page",
    "Stored",
    "Summary",
    "Wanted",
    "balanced",
    "read_behind",
    "read_dead",
    "read_ledger",
    "recent_alerts",
]
