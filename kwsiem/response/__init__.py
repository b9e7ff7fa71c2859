"""Stage 8: an alert asks for a block; the guard decides, the firewall does it, and everything ends in time.

It runs in the root process. What comes from the engine is a request and no more: each is validated here.
"""
