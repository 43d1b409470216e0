"""Texts, tokens and batches: vocabularies, corpora, published data sets, ids on disk."""
