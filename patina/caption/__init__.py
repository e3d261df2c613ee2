"""Writing captions for a folder of pictures with a model that can see."""
