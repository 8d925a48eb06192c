"""Sandboxes over HTTP and WebSocket: `tegu sandbox serve --http`.

A process of its own beside the supervisor, and one of its clients: it holds boxes (`hub`), their
programs (`program`) and files (`tree`, `watch`), and offers them in two tongues. Its own API is
under /v1 (`api`, described by /openapi.json); beside it is the E2B wire API, so that E2B's clients
work unchanged: the control plane (`control`) and what they expect inside a box (`envd`, over the
Connect RPC of `connect`). `gate` says who may; nothing here trusts what a box says. It needs
aiohttp (the extra `web`).
"""

from __future__ import annotations
