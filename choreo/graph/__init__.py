"""The choreography as a graph: what is known of it before it runs."""
