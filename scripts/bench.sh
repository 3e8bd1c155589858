#!/bin/sh
# Makes what `make bench` and `make foreign` need: .venv-bench with choreo and its Python peers, and in .bench/ Node's
# amqplib and the C program. A peer that cannot be had here is named, and left out.
set -eu
cd "$(dirname "$0")/.."

say() { echo "bench: $*" >&2; }
left_out() { say "*** $1 is LEFT OUT of the comparison: $2 ***"; }
can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# Runs the rest of the command unless it has been done in this place with the files named before `--`.
once() {
    stamp=$1/made-from
    shift
    files=
    while [ "$1" != -- ]; do
        files="$files $1"
        shift
    done
    shift
    # shellcheck disable=SC2086 # several files
    made_from="$(pwd -P) $(cat $files | cksum)"
    [ "$(cat "$stamp" 2>/dev/null)" = "$made_from" ] && return
    "$@" && echo "$made_from" > "$stamp"
}

python_peers() {
    say "making .venv-bench with choreo's Python peers; a minute the first time"
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
    .venv/bin/python -m venv --clear .venv-bench &&
        .venv-bench/bin/python -m pip install -qq --requirement requirements/bench.txt &&
        .venv-bench/bin/python -m pip install -qq --no-deps --no-build-isolation --editable .
}

node_peer() {
    mkdir -p .bench/node
    cp requirements/node/package.json requirements/node/package-lock.json .bench/node/
    npm ci --prefix .bench/node --silent --no-audit --no-fund
}

c_peer() {
    mkdir -p .bench/c
    "${CC:-cc}" -O2 -Wall -o .bench/c/with_rabbitmq_c tests/benchmarks/contenders/with_rabbitmq_c.c -lrabbitmq 2>&1
}

have_header() { echo '#include <amqp.h>' | "${CC:-cc}" -E - >/dev/null 2>&1; }

once .venv-bench requirements/bench.txt pyproject.toml -- python_peers

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    left_out amqplib "there is no node and npm here"
elif ! once .bench/node requirements/node/package.json requirements/node/package-lock.json -- node_peer; then
    left_out amqplib "npm could not install it"
fi

if ! command -v "${CC:-cc}" >/dev/null; then
    left_out rabbitmq-c "there is no C compiler here"
else
    if ! have_header && can_install; then scripts/apt-install.sh librabbitmq-dev || true; fi # said below
    if ! have_header; then
        left_out rabbitmq-c "its header is not here (Debian: librabbitmq-dev)"
    elif ! once .bench/c tests/benchmarks/contenders/with_rabbitmq_c.c -- c_peer; then
        left_out rabbitmq-c "it could not be compiled"
    fi
fi
