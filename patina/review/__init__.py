"""Proof-reading captions in a browser: a small server on this machine, and the page that it gives."""
