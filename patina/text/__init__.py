"""Text data: rows of questions and answers as people keep them, read, checked and mended."""
