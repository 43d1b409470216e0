"""Samplers beside each other: a grid of settings drawn, judged, and set against cost or against an exact law."""
