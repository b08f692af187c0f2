"""How code is run: precision and memory layout, tiles, metrics, processes, random number generators."""
