"""Measurements of texts, of models and of energies."""
