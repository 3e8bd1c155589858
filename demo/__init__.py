"""The demo: twenty orders travel through the example agents, over a broker, before your eyes."""
