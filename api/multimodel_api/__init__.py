"""The contract between MultiModel's parts: what crosses a process boundary, and nothing else."""
