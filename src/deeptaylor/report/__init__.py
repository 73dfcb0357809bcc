"""One HTML page about what a network saw in some photos, and the files beside it."""
