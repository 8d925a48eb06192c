# 300 groups are alive, as on a machine with many containers.
start() {
    mkdir /sys/fs/cgroup/lab-many
    echo +memory >/sys/fs/cgroup/lab-many/cgroup.subtree_control
    # shellcheck disable=SC2046
    mkdir $(seq -f '/sys/fs/cgroup/lab-many/c%g' 300)
}
stop() {
    # shellcheck disable=SC2046
    rmdir $(seq -f '/sys/fs/cgroup/lab-many/c%g' 300) /sys/fs/cgroup/lab-many
}
