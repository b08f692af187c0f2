"""The subcommands of ``facd``, one per file."""
