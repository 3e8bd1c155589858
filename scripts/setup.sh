#!/bin/sh
# Makes .venv with choreo (editable) and the tools pinned in requirements/dev.txt. Does nothing when the .venv
# was made here from the same files. PYTHON=/path/to/python chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."

STAMP=.venv/made-from

say() { echo "setup: $*" >&2; }

# A .venv holds absolute paths, so one that was copied or moved is out of date too.
fingerprint() {
    pwd -P
    cat requirements/dev.txt pyproject.toml scripts/setup.sh | cksum
}

# `python3.12` may be a launcher that finds no such Python, hence it is run and not only looked up.
recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
complete() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# Prints the first candidate that is recent and for which the given further test holds.
first() {
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 /usr/bin/python3}; do
        if recent "$candidate" && "$1" "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

find_python() {
    first complete && return
    if ! first true >/dev/null; then
        say "choreo needs Python 3.11 or newer, and none of ${PYTHON:-python3.13, python3.12, python3.11, python3} is."
        say "install one (Debian 12: apt-get install python3 python3-venv), or name it: PYTHON=/path/to/python make setup"
        return 1
    fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "this Python has no venv module; installing python3-venv"
        scripts/apt-install.sh python3-venv && first complete && return
    fi
    say "$(first true) cannot make virtual environments; install its venv module (Debian: apt-get install python3-venv)"
    return 1
}

if [ "$(cat "$STAMP" 2>/dev/null)" = "$(fingerprint)" ] && recent .venv/bin/python; then
    exit 0
fi

# The stamp's first line is the place. A .venv that was made here is brought up to date, any other is made anew.
if [ "$(head -n 1 "$STAMP" 2>/dev/null)" = "$(pwd -P)" ] && recent .venv/bin/python && [ -z "${PYTHON:-}" ]; then
    say "bringing .venv up to date"
else
    python=$(find_python)
    say "making .venv with $("$python" --version); a minute the first time"
    "$python" -m venv --clear .venv
fi

# pip's own settings (mirrors, proxies) are the machine's business; only its chatter is turned off.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_REQUIRE_VIRTUALENV=0
.venv/bin/python -m pip install -qq --requirement requirements/dev.txt
.venv/bin/python -m pip install -qq --no-deps --no-build-isolation --editable .
fingerprint > "$STAMP"
say "done"
