"""How long from the kernel's start until a cloud machine can be used? Tegu against stock Debian."""
