"""Runs a firewall in a network namespace: one JSON request a line on stdin, one answer a line on stdout.

    firewall_agent.py HOME_INODE SETTING CUT_ANSWERS MOST_ENTRIES

HOME_INODE is the machine's own network namespace: in that one nothing is ever touched.
"""

import json
import os
import sys
import time

import msgspec

from kwsiem.errors import KwsiemError
from kwsiem.response.detect import detect
from kwsiem.response.firewall import Entry
from kwsiem.response.ipset import IpsetFirewall
from kwsiem.response.sockets import cut
from kwsiem.response.xtables import FILTER


def serve(firewall) -> None:
    for line in sys.stdin:
        verb, arguments = json.loads(line)
        began = time.perf_counter()
        try:
            answer = {"answer": call(firewall, verb, arguments)}
        except (KwsiemError, ValueError) as error:
            answer = {"error": str(error)}
        answer["took_s"] = time.perf_counter() - began
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        if verb == "close":
            return


def call(firewall, verb, arguments):
    if verb in ("block", "repair"):
        return getattr(firewall, verb)([Entry(*pair) for pair in arguments])
    if verb == "release":
        return firewall.release(arguments)
    if verb == "entries":
        return {entry.network: entry.timeout_s for entry in firewall.entries()}
    if verb == "counters":
        return msgspec.to_builtins(firewall.counters())
    if verb == "close":
        return firewall.close(remove=arguments)
    if verb == "cut":
        return cut(*arguments)._asdict()
    if verb == "pid":
        return firewall.pipe.pid
    return getattr(firewall, verb)(*arguments)


if __name__ == "__main__":
    assert os.stat("/proc/self/ns/net").st_ino != int(sys.argv[1]), "this is the machine's own firewall"
    if sys.argv[2].startswith("filter-"):  # as where the kernel has no mangle table
        serve(IpsetFirewall(sys.argv[2][len("filter-") :], layouts=[FILTER]))
        sys.exit()
    serve(detect(sys.argv[2], cut_answers=sys.argv[3] == "1", most_entries=int(sys.argv[4])))
