"""A trained student outside of training: what its files say of it, what writes them and what runs them."""
