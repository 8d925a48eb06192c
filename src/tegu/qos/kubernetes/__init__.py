"""Classes for pods: a plugin of the container runtime, and the objects a cluster needs for it.

The plugin (`plugin.serve`) speaks NRI with containerd: a pod whose annotation names a class gets
that class's parameters when its containers are created, and its own group gets the static layer.
`schema` has the policy's keys as the schema of a custom resource, `manifests` that resource and the
DaemonSet that runs the plugin; `cluster` reads a policy from there. The messages (nri_pb2) need
protobuf's Python package (extra `kubernetes`, Debian's python3-protobuf); nothing else here does.
"""
