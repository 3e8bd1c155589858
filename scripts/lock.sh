#!/bin/sh
# Pins the development tools and everything that choreo needs in requirements/dev.txt and bench.txt, for Python 3.11 to 3.13
# on every platform, and the benchmark's one peer from npm. Nothing of the machine's own package configuration ends up in the file.
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
if command -v npm >/dev/null; then
    rm -f requirements/node/package-lock.json
    npm install --prefix requirements/node --package-lock-only --omit-lockfile-registry-resolved --silent
else
    echo "lock: there is no npm here; requirements/node/package-lock.json stays as it is" >&2
fi
if grep -n "://" requirements/*.txt requirements/node/package-lock.json; then
    echo "lock: the lines above name a host; they would tie everybody to one machine's configuration" >&2
    exit 1
fi
