"""Receivers of our own and real ones, for tests of outputs: strict, over real sockets, with faults on demand."""
