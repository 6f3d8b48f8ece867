"""The neural reranker that learns to find, by the question alone, what a rationale finds (paper section 3.3)."""
