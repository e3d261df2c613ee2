"""How fast Patina trains, beside the plain loop of the libraries' own examples: the rooms behind tools/bench.py."""
