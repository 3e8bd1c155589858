"""What people do with a choreography that runs: look at it, put events into it, repair what failed."""
