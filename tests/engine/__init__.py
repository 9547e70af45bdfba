"""Conversions of a small checkpoint in many chunks, whatever happens to them."""
