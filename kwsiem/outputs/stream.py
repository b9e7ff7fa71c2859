"""A stream of framed messages over TCP or TLS: syslog and GELF.

Neither has an acknowledgement: a write that succeeded is in a buffer of our kernel, and what a receiver
had not read when it ended is gone, with no error before the write after next. So the sender looks for the
end of the connection before and after each batch, and once a second when idle, and the worker sends again
what it sent last when a new connection stands (``replays``; the bounds are the outbox's). A receiver that
restarts loses nothing of that and gets some twice, with the same alert id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kwsiem.errors import OutputError
from kwsiem.outputs.base import UNCONFIRMED, BaseOutput, Label, Rendered
from kwsiem.outputs.connection import Connection, Tls

Frame = Callable[[bytes], bytes]


class StreamOutput(BaseOutput):
    """Messages over TCP, or TLS when ``tls`` is given; ``frame`` puts the bounds around each (RFC 6587).

    A batch is one write. When it fails it is not known what of it arrived, so all of it goes again, on a
    new connection and from the beginning of a frame.
    """

    label: Label = UNCONFIRMED
    replays = True
    batch_alerts = 1000

    def __init__(self, host: str, port: int, timeout_s: float, frame: Frame, tls: Tls | None = None) -> None:
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._frame = frame
        self._tls = tls
        self._connection: Connection | None = None

    def open(self) -> None:
        """Connect, and with TLS verify the receiver."""
        self.close()
        self._connection = Connection(self._host, self._port, self._timeout_s, self._tls)

    def check(self) -> None:
        """Raise OutputError when the receiver has closed or reset the connection."""
        self._open_connection.check()

    def send(self, batch: Sequence[Rendered]) -> None:
        """Send framed messages."""
        connection = self._open_connection
        connection.check()
        connection.write(b"".join([self._frame(alert.data) for alert in batch]))
        connection.check()

    def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()
            self._connection = None

    @property
    def _open_connection(self) -> Connection:
        if self._connection is None:
            raise OutputError(f"{self._host}:{self._port}: not connected")
        return self._connection
