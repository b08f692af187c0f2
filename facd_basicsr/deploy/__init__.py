"""A trained student outside of training: its exported files, and upscaling with them."""
