"""BM25 over a knowledge base: passages, terms, postings, scores (paper section 3.2)."""
