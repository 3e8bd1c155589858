#!/bin/sh
# Installs Debian packages without starting the services in them, and without a word when all goes well.
# Needs root and apt-get.
#   scripts/apt-install.sh PACKAGE...
set -eu

# Debian asks this program before a package starts its service; 101 forbids it. One that is there already is put
# back afterwards, also when the installation fails or is interrupted.
POLICY=/usr/sbin/policy-rc.d
KEPT=$POLICY.before-choreo

restore() {
    rm -f "$POLICY" "${LOG:-}"
    if [ -e "$KEPT" ]; then mv "$KEPT" "$POLICY"; fi
}

# A kept one that is still here was left by a run that was killed: it is the machine's own, and $POLICY is ours.
if [ -e "$POLICY" ] && [ ! -e "$KEPT" ]; then mv "$POLICY" "$KEPT"; fi
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
printf '#!/bin/sh\nexit 101\n' > "$POLICY"
chmod +x "$POLICY"

LOG=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
# A failed update need not matter: the lists may be recent enough.
if ! { apt-get update -q || true; apt-get install -y -q --no-install-recommends "$@"; } >"$LOG" 2>&1; then
    cat "$LOG" >&2
    echo "apt-get could not install: $*" >&2
    exit 1
fi
