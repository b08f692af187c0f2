"""Data: loaders with exact resume, LMDBs, decoded images, damaged images, preparation, checks of paths."""
