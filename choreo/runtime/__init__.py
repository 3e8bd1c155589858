"""The runtime: one delivery from arrival to settled, the worker around it, and the supervisor of several processes."""
