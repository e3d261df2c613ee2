"""The embedded world: procedural pictures with captions, and the small models that were trained on them."""
