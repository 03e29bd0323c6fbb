"""HTTP/1.1 towards clients: bytes in, requests out; replies spliced onto the client's transport."""
