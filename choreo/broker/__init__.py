"""The embedded broker: its core, its server, and sessions with it in the same process."""
