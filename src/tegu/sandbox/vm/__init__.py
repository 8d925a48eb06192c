"""MicroVMs: boxes with a kernel of their own, restored from a snapshot in a fraction of a boot.

A virtual machine's first process is ours (native/guest.c); it runs programs, moves files and
sleeps as it is told over one virtio-serial port. Each box has a process of its own on the host
(`host`), which the supervisor talks to as it talks to a container's first process. A driver
(`qemu`, `firecracker`, `cloud_hypervisor`) starts, saves and restores the machine; the first box of
a template boots, and all later ones are copies on write of the memory that was saved then.
"""
