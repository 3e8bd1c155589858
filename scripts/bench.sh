#!/bin/sh
# Makes .venv-bench: choreo, and the peers that it is measured beside, in an environment of their own.
set -eu
cd "$(dirname "$0")/.."

STAMP=.venv-bench/made-from
fingerprint() {
    pwd -P
    cat requirements/bench.txt pyproject.toml | cksum
}
[ "$(cat "$STAMP" 2>/dev/null)" = "$(fingerprint)" ] && exit 0

echo "bench: making .venv-bench with choreo's peers; a minute the first time" >&2
.venv/bin/python -m venv --clear .venv-bench
export PIP_DISABLE_PIP_VERSION_CHECK=1
.venv-bench/bin/python -m pip install -qq --requirement requirements/bench.txt
.venv-bench/bin/python -m pip install -qq --no-deps --no-build-isolation --editable .
fingerprint > "$STAMP"
