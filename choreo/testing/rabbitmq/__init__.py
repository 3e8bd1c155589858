"""Private RabbitMQ nodes and clusters on this machine, for tests, benchmarks and `choreo dev`."""
