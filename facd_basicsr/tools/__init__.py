"""Commands beside training and testing: one file, one command."""
