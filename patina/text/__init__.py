"""Text mode: rows, templates, batches and files."""
