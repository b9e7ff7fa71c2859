"""The fault matrix: the real courier, real receivers, every fault that can be made here, and exact accounts.

``python tests/faults`` runs all of it and writes ``docs/delivery.md``; ``tests/live/test_faults.py`` runs the
same cases with few alerts.
"""
