"""Scenes: their items, captions, arrays and images (section 4, Data Construction)."""
