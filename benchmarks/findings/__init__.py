"""The papers' claims, tested on small networks: see `__main__`."""
