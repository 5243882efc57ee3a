"""Weights on disk: `catalogue` finds and lists them, `hub` fetches them, `folder` checks them, `bundle` loads them;
`int8` is how matrices are stored.
"""
