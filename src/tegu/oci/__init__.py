"""An OCI runtime: containers as the runtime specification describes them, for podman, containerd
and whoever else calls a program as they call runc.

`tegu-oci` is a command of its own, not a verb of `tegu`: clients call it for each step of a
container's life, so every import counts, and this package imports nothing by itself. `fields` is
the table of what is honoured and what is refused; `create` and `child` are the two sides of making
a container; docs/oci.md is for users.
"""
