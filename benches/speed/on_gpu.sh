#!/bin/sh
# Everything that is measured on a GPU, in at most eight minutes, on a machine with a GPU, Python and torch 2.11 but no Rust.
# It lies at the top of what `make gpu-pack` makes; what it finds goes to results/*.json and to the terminal.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-index --no-deps --target .site wheels/*.whl
export PYTHONPATH="$PWD/.site" PYTHONUNBUFFERED=1
LD_LIBRARY_PATH="$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")')"
export LD_LIBRARY_PATH
mkdir -p results
bin/attrflow doctor
"$python" benches/speed/quality.py --attrflow bin/attrflow --out results/quality.json
"$python" benches/speed/speed.py --binary bin/attrflow-speed --device cuda --turns "${TURNS:-1}" --out results/speed.json
"$python" benches/speed/speed.py --binary bin/attrflow-speed --device cuda --profile
