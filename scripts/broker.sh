#!/bin/sh
# Makes sure that a RabbitMQ server can be started privately; starts nothing. On Debian as root it installs what
# lacks, and leaves the system-wide service off. Ends with 0 when there is a server. Needs the .venv.
set -eu
cd "$(dirname "$0")/.."

say() { echo "broker: $*" >&2; }

# The demo and the tests look in the same places.
have_server() { .venv/bin/python -c 'from choreo.testing.rabbitmq.release import find_server as f; raise SystemExit(f() is None)'; }
# amqp-publish and amqp-consume play the foreign participant in some tests.
have_tools() { command -v amqp-publish >/dev/null; }
can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

if ! have_server && can_install; then
    say "installing rabbitmq-server and amqp-tools; the service stays off, choreo starts private nodes"
    scripts/apt-install.sh rabbitmq-server amqp-tools || true # said below
    # Nor is it to appear at the next boot: the packages are here for private nodes only.
    if command -v systemctl >/dev/null; then systemctl --quiet disable rabbitmq-server 2>/dev/null || true; fi
elif ! have_tools && can_install; then
    scripts/apt-install.sh amqp-tools || true
fi

if ! have_server; then
    say "no RabbitMQ server here. One of these helps:"
    say "  sudo apt-get install --no-install-recommends rabbitmq-server amqp-tools   (Debian; macOS: brew install rabbitmq)"
    say "  RABBITMQ_HOME=/path/to/rabbitmq_server-4.x                                (an unpacked generic-unix release)"
    say "  CHOREO_URL=amqp://user:password@host/vhost make demo                      (a server that runs already)"
    exit 1
fi
have_tools || say "amqp-publish is not installed (Debian: amqp-tools); the tests that use it are skipped"
