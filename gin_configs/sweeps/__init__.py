"""What the paper varies; each file is one run of a recipe a value."""
