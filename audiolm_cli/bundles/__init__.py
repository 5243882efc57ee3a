"""Weights on disk: `catalogue` finds and lists them, `hub` downloads them, `folder` verifies them, `bundle` loads them;
`int8` is the storage format of matrices.
"""
