"""Files: written atomically, downloaded, read as images or checkpoints, worked on in parallel."""
