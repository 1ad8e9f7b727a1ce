"""Which axes share a width: expressions over widths, and how a graph tells them."""
