"""Taps on features, the frozen teacher and its sanity gate, key layouts, regressors."""
