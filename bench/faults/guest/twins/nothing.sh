# The machine as it is.
start() { :; }
stop() { :; }
