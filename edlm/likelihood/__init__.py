"""Likelihoods of texts: bounds of denoisers and samplers, exact laws of small spaces and of hidden Markov models."""
