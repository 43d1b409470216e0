"""Comparison of samplers: a grid of settings drawn, judged, and plotted against cost or against an exact law."""
