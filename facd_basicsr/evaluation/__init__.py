"""Tables, figures and costs of trained networks."""
