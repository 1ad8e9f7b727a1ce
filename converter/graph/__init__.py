"""TensorFlow graphs: the files that they are in, their nodes, and what each op does.

`definition` reads the files, `node` has nodes and the names of tensors, `ops` tells what ops do.
There are two views: `written` has a graph as its file does, by names, to be fed, fetched and run;
`ordered` has it as data flow, with its calls of functions replaced by what the functions do.
"""
