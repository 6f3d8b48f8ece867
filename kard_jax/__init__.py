"""kard_jax: Knowledge-Augmented Reasoning Distillation (KARD, NeurIPS 2023) in JAX and Flax.

The method in six sentences, and the module that does each:

1. A teacher language model writes rationales for training questions, and a judge keeps those
   that lead to the gold answer (`teacher`).
2. A knowledge base of passages is indexed for BM25, and each kept rationale is used as the query:
   its top passages are the silver passages (`retrieval`, `silver`).
3. A small student learns to write rationale and answer from question and silver passages
   (`student`).
4. A reranker that sees only the question learns, by KL divergence, the distribution that BM25 gives
   the candidates when the rationale is the query (`reranker`).
5. To answer, BM25 by the question gives candidates, the reranker keeps a few, the student writes
   rationales, and their answers vote (`answer`).
6. The score card compares this with every baseline on the same questions (`scorecard`).

Axis legend, used as suffixes of array names (`scores_BxC`): B batch, L input length, T target
length, D model, H heads, K head dim, F hidden, V vocabulary, C candidates, M passage length,
N passages, P postings. Importing this package imports nothing else.
"""
