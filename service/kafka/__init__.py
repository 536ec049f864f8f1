"""The Kafka edge: the only place, with the composition root, that knows FastStream and aiokafka."""
