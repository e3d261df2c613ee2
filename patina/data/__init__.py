"""What a run learns from: pictures with captions, and tables of text."""
