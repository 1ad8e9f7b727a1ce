"""Variables times factors: one for each unit, or one number, with all that has to follow.

`multiply` does it to variables, slots and averages. `widths` tells what a factor for each unit of a
width does to every axis that holds it, and `outputs` what has to be multiplied so that what a layer
gives is. `equal` and `fold` find the factors with which a model computes what it did.
"""
