"""Stage 7: bytes to the world, one module per destination; the worker is the same for all of them."""
