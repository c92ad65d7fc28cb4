"""The configuration: its schema, reading recipes, and code of the user's own."""
