"""The example: an order process that nobody conducts. A module is an agent; `events` is what they share."""
