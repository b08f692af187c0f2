"""Data: loaders with exact resume, LMDBs, images in memory, damaged images, preparation, checks of paths."""
