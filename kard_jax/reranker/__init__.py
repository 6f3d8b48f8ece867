"""The reranker that learns to find, by the question alone, what a rationale finds (section 3.3)."""
