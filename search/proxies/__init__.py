"""Proxies: one file each, registered by name."""

from crepe.search.proxies.base import PROXIES, Proxy, Score, get_proxy

__all__ = ["PROXIES", "Proxy", "Score", "get_proxy"]
