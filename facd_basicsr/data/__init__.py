"""What BasicSR's data lacks: downloads that resume, images of every kind, LMDBs that are whole or not there."""
