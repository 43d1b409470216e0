"""Recipes: what `edlm run` runs. Every file here without a leading underscore is one, with its configs beside it."""
