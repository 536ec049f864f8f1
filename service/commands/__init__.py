"""One file a command; each takes settings and returns an exit code."""
