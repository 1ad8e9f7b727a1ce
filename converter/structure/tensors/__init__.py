"""What the ops of a graph say about the axes of its tensors: which of them are one."""
