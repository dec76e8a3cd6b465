"""Sharded stores, for more images than one disk holds or one process stores in time."""

from imgstore.shards.storing import store, verify

__all__ = ["store", "verify"]
