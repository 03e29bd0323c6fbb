"""The engine process: scheduling, the paged KV cache, running the model, sampling."""
