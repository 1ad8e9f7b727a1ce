"""The built-in strategies. Each module is a plugin like anybody's, with its own entry point."""
