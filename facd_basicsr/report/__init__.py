"""One HTML page about a run: curves, results, crops."""
