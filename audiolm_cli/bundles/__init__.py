"""Weights on disk: `folder` finds and checks them (`hub` fetches them), `bundle` loads them, `int8` is how matrices are
stored.
"""
