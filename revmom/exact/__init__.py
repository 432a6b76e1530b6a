"""Integers that lose nothing: fixed point and information buffers."""
