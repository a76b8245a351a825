"""Checks a wheel: what is in it, and what it does once installed, with an empty environment.

    python tests/wheel/check.py WHEEL --torch FOLDER
    python tests/wheel/check.py WHEEL --demo RESULTS

With --torch, beside this package `torch`, without the registry: `make test-wheel-ci`. With --demo, as a user installs it,
with torch from the registry; the whole demo must rank as in RESULTS: `make test-wheel`.
"""

from __future__ import annotations

import argparse
import email
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).absolute().parent.parent.parent
MOST = 40_000_000
FRONT, WORKER = "attrflow", "attrflow-worker"
# The libraries that manylinux lets a wheel take from the system.
SYSTEM = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
# What a new user has: no HOME, no LD_LIBRARY_PATH, no active environment.
EMPTY = {"PATH": "/usr/bin:/bin"}


def readelf(program: Path, *options: str) -> str:
    return subprocess.run(["readelf", "--wide", *options, program], check=True, capture_output=True, text=True).stdout


def check_contents(wheel: Path) -> None:
    """The files of the wheel, what its programs ask of the system, and whether its tag promises that."""
    assert wheel.stat().st_size <= MOST, f"{wheel.stat().st_size} bytes, at most {MOST}"
    tag = re.fullmatch(r"attrflow-([0-9.]+)-py3-none-manylinux_2_(\d+)_\w+\.whl", wheel.name)
    assert tag, wheel.name
    name, newest = f"attrflow-{tag[1]}", int(tag[2])
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        files = {file for file in archive.namelist() if not file.endswith("/")}
        scripts = {f"{name}.data/scripts/{program}" for program in (FRONT, WORKER)}
        licenses = [f"licenses/{file}" for file in ("LICENSE", "data/demo/README.md", "src/io/image/fonts/OFL.txt")]
        info = {f"{name}.dist-info/{file}" for file in ("METADATA", "WHEEL", "RECORD", *licenses)}
        module = {f"attrflow/{file.name}" for file in (PROJECT / "python/attrflow").iterdir() if file.is_file()}
        assert files == scripts | info | module, files ^ (scripts | info | module)
        assert "attrflow/py.typed" in files
        metadata = email.message_from_bytes(archive.read(f"{name}.dist-info/METADATA"))
        needs = [need for need in metadata.get_all("Requires-Dist", []) if "extra" not in need]
        assert needs == ["torch>=2.11.0,<2.12"], needs
        for script in scripts:
            program = Path(archive.extract(script, folder))
            dynamic = readelf(program, "--dynamic")
            assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic), dynamic
            libraries = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
            torch = {"libtorch_cpu.so", "libc10.so"} if program.name == WORKER else set()
            assert libraries - SYSTEM == torch, (program.name, libraries)
            glibc = [int(minor) for minor in re.findall(r"GLIBC_2\.(\d+)", readelf(program, "--version-info"))]
            assert max(glibc) <= newest, f"{program.name} needs glibc 2.{max(glibc)}, the wheel promises 2.{newest}"
    print(f"contents: {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB")


class Installed:
    """The wheel in an environment of its own, whose path has a space."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "an environment"
        subprocess.run([sys.executable, "-m", "venv", self.root], check=True)

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def packages(self) -> Path:
        (packages,) = self.root.glob("lib/python3.*/site-packages")
        return packages

    def pip(self, *arguments: str | Path) -> None:
        pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([self.bin / "python", *pip, *arguments], check=True)

    def run(self, *command: str | Path, code: int = 0, cwd: str | Path = "/", libraries: str | None = None) -> str:
        """Runs a command with an empty environment, or with one that names a folder of libraries."""
        variables = EMPTY | ({"LD_LIBRARY_PATH": libraries} if libraries else {})
        words = [self.bin / command[0], *command[1:]]
        begun = time.monotonic()
        done = subprocess.run(words, env=variables, cwd=cwd, capture_output=True, text=True)
        said = f"{done.stdout}{done.stderr}"
        assert done.returncode == code, f"{command}: exit code {done.returncode}, expected {code}\n{said}"
        print(f"{' '.join(map(str, command))}: {time.monotonic() - begun:.1f} s", flush=True)
        return done.stdout if code == 0 else said

    def check_doctor(self, *command: str | Path, libraries: str | None = None) -> None:
        report: dict[str, Any] = json.loads(self.run(*command, "doctor", "--json", libraries=libraries))
        loaded = Path(report["worker"]["library"]).parent.parent
        assert loaded == (self.packages / "torch").resolve(), report
        assert report["worker"]["computes"] and report["missing"] is None, report


def check_installed(environment: Installed, folder: Path) -> None:
    """The program, started in the ways that people start it."""
    environment.check_doctor(FRONT)
    environment.check_doctor("python", "-m", "attrflow")
    link = folder / "link"
    link.symlink_to(environment.bin / FRONT)
    environment.check_doctor(link)
    foreign = folder / "foreign"
    foreign.mkdir()
    (foreign / "libtorch_cpu.so").touch()
    environment.check_doctor(FRONT, libraries=str(foreign))
    # It moves as a whole, and nothing is written into it.
    environment.root = environment.root.rename(folder / "moved")
    subprocess.run(["chmod", "-R", "a-w", environment.root], check=True)
    environment.check_doctor(FRONT)
    subprocess.run(["chmod", "-R", "u+w", environment.root], check=True)
    environment.run("python", "-c", "import attrflow, sys; assert not {'numpy', 'torch'} & set(sys.modules)")
    environment.run(FRONT, "self-check")


def check_without_torch(environment: Installed) -> None:
    """Without torch it says so, and what mends it."""
    torch = environment.packages / "torch"
    aside = torch.rename(torch.with_name("aside"))
    said = environment.run(FRONT, "doctor", code=1)
    assert f"'{environment.bin}/python3' -m pip install 'torch==2.11.*'" in said, said
    assert "libtorch 2.11 is needed" in said and "shared libraries" not in said, said
    aside.rename(torch)


def check_demo(environment: Installed, folder: Path, expected: Path) -> None:
    """The whole demo ranks as the build in place did."""
    project = folder / "attrflow-demo"
    environment.run(FRONT, "demo", cwd=folder)
    ranks = sorted(expected.glob("influence/*/rank.npy"))
    assert ranks, f"no ranks in {expected}"
    for rank in ranks:
        found = project / "results/demo" / rank.relative_to(expected)
        assert found.read_bytes() == rank.read_bytes(), f"{found} differs from {rank}"
    print(f"ranks of {len(ranks)} queries: as in {expected}")


def check_uninstalled(environment: Installed) -> None:
    environment.pip("uninstall", "--yes", "attrflow")
    left = [path for path in environment.root.rglob("*attrflow*")]
    assert not left, left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    torch = parser.add_mutually_exclusive_group(required=True)
    torch.add_argument("--torch", type=Path, help="a folder of the package torch")
    torch.add_argument("--demo", type=Path, help="results of the demo, computed by the build in place")
    arguments = parser.parse_args()
    check_contents(arguments.wheel)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        environment = Installed(folder)
        if arguments.torch:
            environment.pip("install", "--no-deps", arguments.wheel)
            (environment.packages / "torch").symlink_to(arguments.torch.resolve())
            check_installed(environment, folder)
            check_without_torch(environment)
        else:
            environment.pip("install", arguments.wheel)
            check_installed(environment, folder)
            check_demo(environment, folder, arguments.demo)
        check_uninstalled(environment)
    print("the wheel is sound")


if __name__ == "__main__":
    main()
