"""An OCI runtime: containers as the runtime specification describes them, for podman, containerd
and whoever else calls a program as they call runc.

`tegu-oci` is a command of its own, not a verb of `tegu`: clients call it for each step of a
container's life, so every import counts, and this package imports nothing by itself. Nor does it
import `typing`, which took an eighth of a command's time: checkers know `TYPE_CHECKING` by name.
`fields` is the table of what is honoured and what is refused; `create` and `child` are the two
sides of making a container; `classes` hands those of the class gvisor to runsc; docs/oci.md is for
users.
"""
