"""The configuration: prune options, the schema of recipes, reading them, and the user's own code."""
