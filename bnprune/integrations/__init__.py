"""Callbacks for other trainers, thin layers over the public API: `lightning`, `transformers`, `ultralytics`.

Each module imports its package; `bnprune` itself imports none of them.
"""
