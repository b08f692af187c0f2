"""The ``facd`` commands: one file, one command."""
