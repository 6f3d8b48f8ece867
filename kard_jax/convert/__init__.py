"""Weights in and out: Hugging Face folders (safetensors) and T5X checkpoints.

`huggingface` and `t5x` load and write; a module a family (`t5`, ...) says in a table which tensor
is which parameter; `tables` has what an entry of such a table means.
"""
