"""The scoreboard: real attacks and real daily work against the live appliance; ``make scoreboard`` writes a page of it.

:mod:`cases` is the table of attacks, :mod:`daily` that of daily work, :mod:`field` the laboratory they happen in,
:mod:`run` plays them and judges what the appliance said.
"""
