"""Measured results: the columns, the store and the matrix drawn from them."""
