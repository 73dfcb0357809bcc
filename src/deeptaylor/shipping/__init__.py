"""Explanations as programs of their own: compiled, exported, differentiated."""
