"""A run's folder, ``experiments/NAME``, read back."""
