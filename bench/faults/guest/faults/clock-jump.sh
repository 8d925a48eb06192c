# Someone set the clock an hour ahead.
start() {
    date --set='+1 hour' >/dev/null
}
stop() {
    hwclock --hctosys --utc 2>/dev/null || date --set="@$(cat /sys/class/rtc/rtc0/since_epoch)" >/dev/null
}
