# The page cache has all memory that nobody needs.
start() {
    head -c 900000000 /dev/zero >$LAB/large
    cat $LAB/large >/dev/null
}
stop() { rm -f $LAB/large; }
