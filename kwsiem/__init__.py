"""kwsiem: kernel-level intrusion detection that feeds a SIEM.

The path of an event, each stage one package or module, each arrow one record type::

    sensor/  1 kernel -> lines      probes/*.bt run by bpftrace, supervised          [root]
    decode   2 line   -> event      never raises; what is wrong is counted
    correlate/ 4 event -> alert     sliding windows over rules from rules/
    outbox   6 alert waits here     durable before any output sees it
    formats/ 5 alert  -> bytes      pure functions
    outputs/ 7 bytes  -> the world  console, file, syslog

Three processes carry it: ``appliance`` (the sensor, root), ``engine`` and ``courier`` (no rights); a fourth,
``exporter``, serves metrics when asked for.
"""

__version__ = "0.1.0"
