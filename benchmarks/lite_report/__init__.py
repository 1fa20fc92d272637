"""Measure the zoo's `lite` weights and their fusion, and write what was found into the cards: see `__main__`."""
