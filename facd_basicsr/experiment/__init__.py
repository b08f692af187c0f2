"""What a training has left in `experiments/NAME`, read back: its log, its options as they were run, its networks."""
