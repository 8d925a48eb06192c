"""Networks of boxes: what they may reach outside, by name and address, and ports that lead in.

A box's network namespace has no way out: every address is delivered within it, to a socket that
the relay holds, if the box's policy allows the address (`policy`, `maker`). The relay, a process
without rights of its own, connects from the host in the box's place (`relay`), and answers names
(`resolver`). So a box has no device, no route and no filter that it could change.
"""
