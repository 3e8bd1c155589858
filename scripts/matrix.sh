#!/bin/sh
# Runs the unit and rehearsal suites on every Python that pyproject.toml claims and that is here: on PATH, under pyenv, or
# among the paths in CHOREO_TEST_PYTHONS. It says loudly on which ones they did not run.
# --smoke: a few files only, and not on the Python of .venv, which `make test` has already. More arguments are pytest's.
set -eu
cd "$(dirname "$0")/.."

SUITES=tests/unit
SMOKE="tests/unit/test_virtual_loop.py tests/unit/test_rehearsal.py tests/unit/test_calling.py tests/unit/test_reaction.py
    tests/unit/test_envelope.py tests/unit/test_publisher.py"

say() { echo "matrix: $*" >&2; }

smoke=
if [ "${1:-}" = --smoke ]; then
    smoke=yes
    SUITES=$SMOKE
    shift
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

claimed() { sed -n 's/.*"Programming Language :: Python :: \(3\.[0-9][0-9]*\)".*/\1/p' pyproject.toml; }

# Prints the first Python of the release $1 that runs: one on PATH may be a launcher that finds none.
find_python() {
    for candidate in ${CHOREO_TEST_PYTHONS:-} "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1."*/bin/"python$1"; do
        if "$candidate" -c "import sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

fingerprint() { pwd -P && "$1" --version && cat requirements/dev.txt pyproject.toml scripts/matrix.sh | cksum; }

# Makes .venv-matrix/$1 with the Python $2. It is given its packages by .venv's pip: its own may be missing.
make_venv() {
    [ "$(cat ".venv-matrix/$1/made-from" 2>/dev/null)" = "$(fingerprint "$2")" ] && return
    "$2" -m venv --clear --without-pip ".venv-matrix/$1" &&
        PYTHONWARNINGS=ignore .venv/bin/pip --python ".venv-matrix/$1/bin/python" install -qq -r requirements/dev.txt &&
        PYTHONWARNINGS=ignore .venv/bin/pip --python ".venv-matrix/$1/bin/python" install -qq --no-deps --no-build-isolation -e . &&
        fingerprint "$2" > ".venv-matrix/$1/made-from"
}

own=$(.venv/bin/python -c "import sys; print('%d.%d' % sys.version_info[:2])")
ran= missing= failed=
for release in $(claimed); do
    if [ -n "$smoke" ] && [ "$release" = "$own" ]; then
        continue
    fi
    if ! python=$(find_python "$release"); then
        missing="$missing $release (not found)"
    elif ! make_venv "$release" "$python" >&2; then
        missing="$missing $release (its packages cannot be installed)"
    else
        say "$("$python" --version) ($python)"
        # shellcheck disable=SC2086 # it is a list of files
        if ".venv-matrix/$release/bin/python" -m pytest -q -p no:cacheprovider $SUITES "$@"; then
            ran="$ran $release"
        else
            failed="$failed $release"
        fi
    fi
done
[ -z "$ran" ] || say "passed on Python$ran"
[ -z "$missing" ] || say "NOT TESTED on Python$missing; name an interpreter: CHOREO_TEST_PYTHONS=/path/to/python make matrix"
[ -z "$failed" ] || { say "FAILED on Python$failed"; exit 1; }
