"""Colours of all charts."""

__all__ = ["COLOURS"]

COLOURS = ("#E69F00", "#0072B2", "#009E73", "#CC79A7")
"""Told apart by every common colour vision, and by lightness in print.

Source: Okabe and Ito 2008, Color Universal Design.
"""
