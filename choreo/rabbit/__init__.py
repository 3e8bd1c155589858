"""RabbitMQ: the only room that imports an AMQP client."""
