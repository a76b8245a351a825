"""A 7z archive in three volumes, as another program than our tests' own writes it: tests/golden/archive/.

    python tests/golden/make_archive.py
"""

import io
import tempfile
from pathlib import Path

import py7zr

HERE = Path(__file__).parent / "archive"
HERE.mkdir(exist_ok=True)
for old in HERE.glob("sample.7z.*"):
    old.unlink()

with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    (root / "sample").mkdir()
    (root / "empty").mkdir()
    (root / "sample/0.txt").write_text("a cat on a sofa\n" * 40)
    (root / "sample/numbers").write_bytes(bytes(i * i * 31 % 251 for i in range(1500)))
    (root / "none.txt").write_bytes(b"")
    whole = io.BytesIO()
    with py7zr.SevenZipFile(whole, "w") as archive:
        for path in sorted(root.iterdir()):
            archive.writeall(path, arcname=path.name)

# `7z -v250b` cuts the same way: the volumes are the archive in pieces.
pieces = whole.getvalue()
for number, start in enumerate(range(0, len(pieces), 250), 1):
    (HERE / f"sample.7z.{number:03}").write_bytes(pieces[start : start + 250])
