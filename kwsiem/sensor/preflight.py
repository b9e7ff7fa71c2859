"""Asks before a probe is started whether this kernel and host can run it at all.

bpftrace's own answer differs by version: a missing uprobe symbol is an error in 0.23 and silence in 0.17.
"""

from __future__ import annotations

import mmap
import re
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kwsiem.sensor.catalog import ProbeSpec

BTF: Final = Path("/sys/kernel/btf/vmlinux")
_LDCONFIG: Final = ("/sbin/ldconfig", "/usr/sbin/ldconfig")
_LDCONFIG_LINE: Final = re.compile(r"^\s*(\S+?)\.so(?:\.\S+)? \(.*\) => (/\S+)$", re.MULTILINE)
_SHT_DYNSYM: Final = 11  # elf.h
_MAX_SYMBOLS: Final = 500_000


def find_library(name: str) -> list[Path]:
    """The files that ``libpam`` may be (one for each architecture), from the linker's own cache."""
    if name.startswith("/"):
        return [Path(name)] if Path(name).exists() else []
    for program in _LDCONFIG:
        try:
            done = subprocess.run(
                [program, "-p"], capture_output=True, text=True, timeout=20, check=False, env={"LC_ALL": "C"}
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        return [Path(path) for stem, path in _LDCONFIG_LINE.findall(done.stdout) if stem == name]
    return []


def preflight(
    spec: ProbeSpec,
    tracing: Path,
    btf: Path = BTF,
    libraries: Callable[[str], Sequence[Path]] = find_library,
) -> str | None:
    """The reason why this host cannot run the probe, a sentence with what to do; None when it can.

    ``tracing`` is where tracefs is mounted. Never raises.
    """
    if spec.needs_btf and not btf.exists():
        return f"{btf} is missing: the kernel must be built with CONFIG_DEBUG_INFO_BTF=y"
    if spec.tracepoints and not (tracing / "events").is_dir():
        return f"{tracing}/events is missing: mount tracefs (mount -t tracefs tracefs {tracing})"
    for tracepoint in spec.tracepoints:
        category, _, name = tracepoint.partition(":")
        if not (tracing / "events" / category / name).is_dir():
            return f"tracepoint {tracepoint} is not in this kernel: use another kernel, or remove the probe"
    for uprobe in spec.uprobes:
        library, _, symbol = uprobe.rpartition(":")
        files = libraries(library)
        if not files:
            return f"library {library} is not on this host: install it, or remove the probe"
        if not any(defines(file, symbol) for file in files):
            names = ", ".join(str(file) for file in files)
            return f"{names} does not define {symbol}: it is another library, or too old for the probe"
    return None


def defines(file: Path, symbol: str) -> bool:
    """Whether an ELF file defines a dynamic symbol; False for anything that is not a sound ELF file."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _in_dynsym(data, symbol.encode())
    except (OSError, ValueError, struct.error):
        return False


def _in_dynsym(data: mmap.mmap, symbol: bytes) -> bool:
    """Looks through the section of dynamic symbols (it survives strip); gABI chapters 4 and 5."""
    if data[:4] != b"\x7fELF":
        return False
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    table_at, entry_bytes, count = (
        (*struct.unpack_from(order + "Q", data, 40), *struct.unpack_from(order + "HH", data, 58))
        if wide
        else (*struct.unpack_from(order + "I", data, 32), *struct.unpack_from(order + "HH", data, 46))
    )
    section = struct.Struct(order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII"))
    sections = [section.unpack_from(data, table_at + entry_bytes * number) for number in range(count)]
    # Of a section: [1] type, [4] offset, [5] size, [6] link to its strings. Of a symbol: name, section.
    entry = struct.Struct(order + ("IBBHQQ" if wide else "IIIBBH"))
    for header in sections:
        if header[1] != _SHT_DYNSYM or header[6] >= count:
            continue
        names_at = sections[header[6]][4]
        for number in range(min(header[5] // entry.size, _MAX_SYMBOLS)):
            fields = entry.unpack_from(data, header[4] + number * entry.size)
            defined = fields[3] if wide else fields[5]
            start = names_at + fields[0]
            if defined and data[start : start + len(symbol) + 1] == symbol + b"\0":
                return True
    return False
