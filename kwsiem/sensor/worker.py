"""Our processes without rights, engine, courier, exporter: started, restarted, told apart by links."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import Any, Final, Generic, TypeVar

from kwsiem.link import Link, link_pair

#: A process that ends is started again after this; doubled each time it ends within STEADY_S, up to MOST_S.
FIRST_S: Final = 0.1
MOST_S: Final = 10.0
STEADY_S: Final = 30.0

#: Both say how they are each second. Who is silent this long is not blamed on others (it may be stopped) …
SILENT_S: Final = 2.5
#: … and who is silent this long hangs, and is killed and started again.
HUNG_S: Final = 30.0

Incoming = TypeVar("Incoming")


class Worker(Generic[Incoming]):
    """One of our own child processes.

    ``alerts`` is its end of the alerts link, if it has one. We hold both ends of that link for as long as we
    live, so that what one process has sent is still there for the next run of the other.
    """

    def __init__(self, name: str, incoming: Any, alerts: socket.socket | None = None) -> None:
        self.name = name
        self.stats: dict[str, Any] = {}
        self.restarts = 0
        self.ready = False
        self.link: Link[Incoming] | None = None
        self.pid = 0
        self.pidfd = -1
        self.since_s = 0.0
        self.heard_s = 0.0
        self.stopping = False
        self._incoming = incoming
        self._alerts = alerts
        self._process: subprocess.Popen[bytes] | None = None
        self._due_s: float | None = 0.0
        self._delay_s = FIRST_S

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def due(self, now_s: float) -> bool:
        """Whether it should be started now."""
        return not self.running and not self.stopping and self._due_s is not None and now_s >= self._due_s

    def start(self, now_s: float) -> Link[Incoming]:
        """Start the process; the link to it is ready for the first message."""
        ours, theirs = link_pair()
        argv = [sys.executable, "-I", "-m", f"kwsiem.{self.name}"]
        argv += ["--sensor-fd", str(theirs.fileno())]
        fds = [theirs.fileno()]
        if self._alerts:
            argv += ["--alerts-fd", str(self._alerts.fileno())]
            fds.append(self._alerts.fileno())
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            start_new_session=True,
        )
        theirs.close()
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.since_s = self.heard_s = now_s
        self.ready = False
        self.link = Link(ours, self._incoming)
        return self.link

    def ended(self, now_s: float) -> int:
        """The process has ended (its pidfd is readable): release it; its exit status."""
        assert self._process is not None
        status = self._process.wait()
        self._process = None
        os.close(self.pidfd)
        self.pidfd = -1
        self.ready = False
        if self.link:
            self.link.close()
            self.link = None
        self._delay_s = FIRST_S if now_s - self.since_s > STEADY_S else min(self._delay_s * 2, MOST_S)
        self._due_s = now_s + self._delay_s
        self.restarts += 1
        return status

    def listening(self, now_s: float) -> bool:
        """Whether it has said something lately."""
        return self.ready and now_s - self.heard_s < SILENT_S

    def hangs(self, now_s: float) -> bool:
        """Whether it has been silent for so long that it must be started again."""
        return self.running and now_s - self.heard_s > HUNG_S

    def kill(self) -> None:
        """SIGKILL, when it does not end by itself."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
