"""Packs the programs of a finished build as a wheel. `pip install .` gives the same wheel, and builds the programs for it.

    python packaging/wheel.py PROGRAMS OUT [--platform manylinux_2_28_x86_64]

PROGRAMS is the folder of the two programs, such as target/release. The wheel holds no libtorch: the programs find that of
the package torch when they run. Without --platform its tag is the oldest one that the programs allow: glibc's symbols that
they use come from the machine that built them. Prints the wheel's path.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).absolute().parent.parent
PROGRAMS = ("attrflow", "attrflow-worker")
# What torch brings. auditwheel would copy it into the wheel: gigabytes.
OF_TORCH = ("libtorch*.so*", "libc10*.so*", "libgomp*", "libcu*", "libnv*")


def tool(name: str, *arguments: str | Path) -> None:
    """Runs a program that was installed beside this Python, else one of the system; what it says is shown if it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which(name, path=path)
    if found is None:
        sys.exit(f"error: the program `{name}` is missing")
    done = subprocess.run(
        [found, *arguments], cwd=PROJECT, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"error: `{name}` failed:\n{done.stdout}{done.stderr}")


def pack(programs: Path, out: Path, platform: str | None) -> Path:
    """Writes the wheel, and removes older ones from the folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content, plain, tagged = (folder / part for part in ("content", "plain", "tagged"))
        content.mkdir()
        plain.mkdir()
        tool("maturin", "pep517", "write-dist-info", "--metadata-directory", content, "--interpreter", sys.executable)
        (info,) = content.glob("*.dist-info")
        scripts = content / f"{info.name.removesuffix('.dist-info')}.data" / "scripts"
        scripts.mkdir(parents=True)
        for program in PROGRAMS:
            tool("strip", "-o", scripts / program, programs / program)
            # It names folders of the machine that built it. The programs do without: they look for libtorch themselves.
            tool("patchelf", "--remove-rpath", scripts / program)
        shutil.copytree(
            PROJECT / "python/attrflow", content / "attrflow", ignore=shutil.ignore_patterns("__pycache__")
        )
        tool("wheel", "pack", content, "--dest-dir", plain)
        (wheel,) = plain.glob("*.whl")
        exclude = [word for pattern in OF_TORCH for word in ("--exclude", pattern)]
        tool("auditwheel", "repair", *exclude, "--plat", platform or "auto", "--wheel-dir", tagged, wheel)
        (wheel,) = tagged.glob("*.whl")
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("attrflow-*.whl"):
            old.unlink()
        return Path(shutil.move(wheel, out / wheel.name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", type=Path, help="the folder of the programs")
    parser.add_argument("out", type=Path, help="the folder for the wheel")
    parser.add_argument("--platform", help="the tag that the wheel must fit")
    arguments = parser.parse_args()
    for program in PROGRAMS:
        if not (arguments.programs / program).is_file():
            sys.exit(f"error: {arguments.programs / program} is missing: build it first")
    wheel = pack(arguments.programs.absolute(), arguments.out.absolute(), arguments.platform)
    print(os.path.relpath(wheel))


if __name__ == "__main__":
    main()
