"""Rotary transformers, their heads, and torchtune's decoders as networks."""
