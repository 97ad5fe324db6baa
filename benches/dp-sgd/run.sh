#!/bin/sh
# Our DP-SGD step beside our plain step and beside Opacus: see README.md.
set -eu
cd "$(dirname "$0")/../.."
python=${UNDERTONE_BENCH_PYTHON:-}
if [ -z "$python" ]; then
    venv=target/bench-venv
    [ -x "$venv/bin/python3" ] || python3 -m venv "$venv"
    python=$venv/bin/python3
    "$python" -c 'import opacus, torch' 2>/dev/null || "$python" -m pip install --quiet 'torch==2.11.0' 'opacus==1.6.*' numpy
fi
bench=$(cargo bench --package undertone-train --bench dp_step --no-run --message-format json \
    | "$python" benches/dp-sgd/compare.py --find)
exec "$python" benches/dp-sgd/compare.py "$bench" "$@"
