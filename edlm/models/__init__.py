"""Networks read as laws and energies: denoisers, energies, the chain rule, two heads in one network."""
