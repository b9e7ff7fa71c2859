"""The dashboard: what the appliance sees and does, in a browser.

Two processes. The parent is root and knows no network: it asks the control socket (``desk``). The child
gives up all rights before it opens a port; it speaks HTTP (``server``, ``web``, ``sessions``), reads the
files of the courier (``picture``) and asks the parent for a handful of things over a link.
"""
