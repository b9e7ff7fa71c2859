"""Correlation: events and a :class:`~kwsiem.rules.model.RuleSet` become alerts.

``codegen`` makes one function per event class out of the rules' predicates, ``window`` and ``sequence``
hold the state of a rule per key, ``kinds`` is the table of correlation types, ``incident`` turns met
conditions into alerts, and ``engine`` joins them. Nothing here does I/O, reads a clock or starts a thread.
"""
