"""The training loop, checkpoints, resume, non-finite steps, signals, launch and logs."""
