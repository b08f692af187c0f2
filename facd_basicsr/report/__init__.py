"""One HTML page about a training: what it logged, what it came to, and what its images look like."""
