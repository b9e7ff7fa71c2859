"""What the kernel could not deliver is an alert, and the ledger still adds up."""

import os
import signal
import sys
import time

import pytest
from appliance import RunningAppliance
from lab import Lab, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

PROBE = """/*
 * kills - Calls of kill(2) with signal 0.
 *
 * sees:     the calls
 * blind:    nothing of them
 * overhead: a line each
 * needs:    tracepoint syscalls:sys_enter_kill
 *
 * event 1 test.kill process.pid:u64 process.name:str
 */
tracepoint:syscalls:sys_enter_kill /args->sig == 0/ { print((1, (uint64)pid, comm, nsecs)); }
interval:s:1 { print((0, nsecs)); }
"""

FLOOD = "import os\nfor _ in range(200_000): os.kill(os.getpid(), 0)"
#: Up to bpftrace 0.21 the kernel tells what a CPU lost with that CPU's next record.
ONE_ON_EACH_CPU = """import os
for cpu in os.sched_getaffinity(0):
    os.sched_setaffinity(0, {cpu})
    os.kill(os.getpid(), 0)
"""


def test_events_lost_while_nobody_reads_are_counted_and_alerted(tmp_path):
    with Lab("host") as lab:
        appliance = RunningAppliance(lab, tmp_path, record=False)
        (appliance.probes / "kills.bt").write_text(PROBE)
        with appliance:
            bpftrace, engine = appliance.probe("kills")["pid"], appliance.pid("engine")
            os.kill(engine, signal.SIGSTOP)
            try:
                lab.run("host", [sys.executable, "-c", FLOOD], timeout=60)
                time.sleep(7)  # longer than a probe may be silent: it must not be blamed for the engine
            finally:
                os.kill(engine, signal.SIGCONT)
            time.sleep(1)  # the buffers are read empty: there is room for the next record
            lab.run("host", [sys.executable, "-c", ONE_ON_EACH_CPU], timeout=10)
            alert = appliance.wait_alert("sensor-lost-events", timeout=20)
            assert alert["kwsiem"]["alert"]["identity"] == {"probe.name": "kills"}

            def accounted() -> int:
                status = appliance.status()["engine"]
                return status["engine"]["events"].get("test.kill", 0) + status["lines"]["kills"]["lost"]

            wait_until(lambda: accounted() >= 200_000, 15, "every call is an event or a loss")
            assert accounted() < 201_000  # somebody else may call kill as well
            lost = appliance.status()["engine"]["lines"]["kills"]["lost"]
            assert lost > 10_000
            assert appliance.probe("kills")["pid"] == bpftrace
            assert appliance.probe("kills")["restarts"] == 0
