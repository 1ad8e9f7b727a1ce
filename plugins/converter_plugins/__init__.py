"""The built-in strategies, one module each, loaded like those of any other package.

All of these modules are loaded for `convert ckpt --help`. So what only works, and numpy, is
imported in the methods that need it; tests/test_cli.py guards that.
"""
