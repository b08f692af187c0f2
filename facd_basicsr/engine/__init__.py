"""What BasicSR's training loop lacks."""
