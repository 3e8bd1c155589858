"""The demo: twenty orders travel through the example agents, over a real broker, before your eyes."""
