"""The commands of `multimodel`, one module for each family."""
