"""What the layers of a model compute on data: which tensors say it, and their moments."""
