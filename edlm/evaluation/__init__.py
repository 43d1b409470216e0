"""What is measured of texts, of models and of energies."""
