"""The HTTP routes, a module each, and what they share in `requests` and `streams`."""
