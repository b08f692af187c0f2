"""Fair comparison: methods times seeds through the same loop, and one report of them all."""
