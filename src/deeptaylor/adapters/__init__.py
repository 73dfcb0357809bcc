"""Models, photos and labels from elsewhere: what stands between a file on disk and a tensor that can be explained."""
