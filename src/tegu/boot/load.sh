# shellcheck shell=dash disable=SC2034
# How modules are loaded, in the initrd and in the capture kernel: the first lines of
# /lib/tegu/load, whose other functions are made per kernel (tegu.boot.load_script). The script that
# sources it has `say`; it sets `once` to what to look at in the next scan only.

loaded=' ' once=''

# Load a module once; the functions below name the modules it needs first.
load() {
	case $loaded in *" $1 "*) return ;; esac
	loaded="$loaded$1 "
	insmod "/lib/tegu/modules/$1.ko" || say "cannot load the module $1"
}

# Load what $1 (a function below) names for the devices that are there by now.
scan() {
	set +f
	for entry in /sys/bus/virtio/devices/*/modalias /sys/bus/pci/devices/*/modalias \
		/sys/bus/scsi/devices/*/modalias /sys/bus/vmbus/devices/*/modalias \
		/sys/bus/xen/devices/*/modalias $once; do
		[ -e "$entry" ] && read -r alias <"$entry" && "$1" "$alias"
	done
	set -f
}

