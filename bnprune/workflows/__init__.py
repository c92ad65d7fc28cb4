"""Every command as a typed function: `bnprune.workflows.prune.prune(...)` does what `bnprune prune ...` does.

The functions print nothing; they return a result from `bnprune.workflows.results`. The command line parses, calls
one of them and renders the result.
"""
