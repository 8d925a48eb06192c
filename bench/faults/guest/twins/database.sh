# A database commits as fast as the disk lets it.
start() {
    spawn database -- python3 -c 'import sqlite3
d = sqlite3.connect("/var/lab/base.db")
d.execute("create table if not exists t (a integer, b text)")
while True:
    for i in range(50):
        d.execute("insert into t values (?, ?)", (i, "x" * 200))
    d.commit()
    d.execute("select count(*) from t").fetchone()'
    sleep 3
}
stop() {
    unspawn database
    rm -f $LAB/base.db*
}
