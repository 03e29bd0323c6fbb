"""The `multimodel` command and the Python client."""
