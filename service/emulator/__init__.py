"""An emulated Conversations API on a real socket, with scripted faults."""
