# Sixty jobs failed, and systemd keeps each.
start() {
    printf '[Service]\nType=oneshot\nExecStart=/bin/false\n' >/run/systemd/system/lab-job@.service
    systemctl daemon-reload
    # shellcheck disable=SC2046
    systemctl start --no-block $(seq -f 'lab-job@%g.service' 60)
    while [ "$(systemctl list-units --all --state=failed --plain --no-legend 'lab-job@*' | wc -l)" -lt 60 ]; do sleep 1; done
}
stop() {
    systemctl reset-failed 'lab-job@*'
    rm -f /run/systemd/system/lab-job@.service
    systemctl daemon-reload
}
