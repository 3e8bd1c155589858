"""The embedded broker behind a socket: AMQP 0-9-1 on loopback, and the file that keeps what it holds."""
