"""Keep a processor in the kernel for so many seconds, by a BPF program: lockup.py SECONDS."""

import ctypes
import os
import struct
import sys
from pathlib import Path

from tegu.linux.libbpf import BpfObject, load_library

_BPF_PROG_TEST_RUN = 10  # linux/bpf.h
_BPF = {"x86_64": 321, "aarch64": 280}

with BpfObject(Path(__file__).with_name("lockup.bpf.o").read_bytes()) as program:
    program.configure(".rodata.lockup", struct.pack("<Q", int(float(sys.argv[1]) * 1e9)))
    program.load()
    fd = load_library().dll.bpf_program__fd(ctypes.c_void_p(program._program("lockup")))
    # union bpf_attr, test: prog_fd first; no data, no context, one run.
    attr = ctypes.create_string_buffer(struct.pack("<I", fd), 80)
    if ctypes.CDLL(None).syscall(_BPF[os.uname().machine], _BPF_PROG_TEST_RUN, attr, 80) != 0:
        sys.exit("the kernel did not run the program")
