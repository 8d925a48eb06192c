#!/bin/sh
# The versions of the symbols that one object exports, out of a cache: ccache keeps objects only,
# and preprocessing each source once more and reading all of it (scripts/genksyms) was more than
# half of a build whose objects ccache had.
#
# usage: symversions.sh .NAME.o.cmd CPP ARGUMENT...   (in the tree, as make runs it)
#
# The key is all that decides: the command, the files that the object was made from (Kbuild has
# just noted them in .NAME.o.cmd), the configuration and genksyms itself.
set -e
noted=$1
shift
for source; do :; done
files=$(sed -n 's/^  \([^$ ][^ ]*\) \\$/\1/p' "$noted")
: "${files:?nothing is noted in $noted}"
# Kbuild leaves this header out of its notes.
files="$source include/generated/autoconf.h scripts/genksyms/genksyms $files"
# shellcheck disable=SC2086 # no path in a kernel tree has a blank
key=$({ printf '%s\n' "$@" $files && cat -- $files; } | sha256sum)
kept=$CCACHE_DIR/symversions/${key%% *}
if [ ! -f "$kept" ]; then
	mkdir -p "${kept%/*}"
	made=$kept.$$
	trap 'rm -f "$made" "$made.i"' EXIT
	# Not a pipe, which would forget that the preprocessor failed.
	"$@" > "$made.i"
	scripts/genksyms/genksyms -r /dev/null < "$made.i" > "$made"
	mv "$made" "$kept"
fi
cat "$kept"
