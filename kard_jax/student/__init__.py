"""The small language model that learns to reason with passages (paper section 3.1 and 3.2)."""
