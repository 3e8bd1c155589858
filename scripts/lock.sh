#!/bin/sh
# Pins the development tools and everything that choreo needs in requirements/dev.txt and bench.txt, for Python 3.11 to 3.13
# on every platform. Nothing of the machine's own package configuration ends up in the file.
set -eu
cd "$(dirname "$0")/.."

.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
lock() {
    output=$1
    shift
    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
        --all-extras --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
        --output-file "$output" pyproject.toml "$@"
}
lock requirements/dev.txt requirements/dev.in
lock requirements/bench.txt requirements/dev.in requirements/bench.in
if grep -n "://" requirements/dev.txt requirements/bench.txt; then
    echo "lock: the lines above name a host; they would tie everybody to one machine's configuration" >&2
    exit 1
fi
