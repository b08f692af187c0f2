"""One HTML page about a run: what it logged, what it came to, and what its images look like."""
