"""The core decides: pure state and pure functions, time is an argument, nothing is awaited."""
