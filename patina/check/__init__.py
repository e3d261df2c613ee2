"""What is wrong with a set of training pictures and captions, found before a run is spent on it."""
