"""The architectures that can be served, their configuration files and their weights."""
