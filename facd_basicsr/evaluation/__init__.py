"""Tables, figures, feature PSNR and costs of trained networks."""
