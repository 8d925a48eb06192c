"""Settings of a running machine that are served on any kernel, with what each gives up.

One so far: `tcp_tw_timeout`, how long closed connections stay in TIME-WAIT. Where the kernel has
the setting it is set there; elsewhere a sweep ends the sockets that are old enough.
"""

from __future__ import annotations

from tegu.tune.settings import Setting, clear, current, put
from tegu.tune.timewait import Swept, serve, sweep

__all__ = ["Setting", "Swept", "clear", "current", "put", "serve", "sweep"]
