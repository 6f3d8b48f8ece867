"""One verb a file; each runs one stage of a recipe from a gin file."""
