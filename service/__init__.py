"""Convoy: forwards per-conversation message events from Kafka to a Conversations API."""

__version__ = "0.1.0"
