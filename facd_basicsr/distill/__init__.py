"""What distillation adds around two networks: taps on their features, and the frozen teacher."""
