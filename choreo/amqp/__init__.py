"""AMQP 0-9-1 as bytes: frames, properties, header tables and their templates. Both sides use it."""
