"""A stand-in of the name by which the router starts model servers."""
