"""A package, so that gin finds these files from any directory."""
