"""An OpenAI server for one model over a paged-attention engine in a child process."""
