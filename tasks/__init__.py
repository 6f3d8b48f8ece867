"""Datasets in SeqIO's terms, and their batches by Grain; the only package that imports TensorFlow.

`registry` registers a dataset in one call; `openbookqa` and `closed_world` are datasets; `sources`
makes examples of a work directory's files; `batches` makes of a task what the trainer asks for, the
batch of a step. Importing this package imports nothing else.
"""
