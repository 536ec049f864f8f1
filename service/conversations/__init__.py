"""The API edge: the only place that knows httpx and how bytes reach the Conversations API."""
