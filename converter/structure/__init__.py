"""Which axes share a width: expressions over widths, and how a graph tells them.

Each of the rooms imports only those before it: `axes` is the notation, `tensors` what the ops of a
graph tie together, `properties` what the widths allow by that. `structure` has what is known in the
end, `layout` and `declare` what somebody says of it, `cells` what names tell without a graph, and
`infer` puts all of it together. `layers` tells, by what was inferred, the layers and their tensors.
"""
