"""BPF through the system's libbpf.so.1: objects, maps, ring buffers, iterators, type information.

libbpf.readthedocs.io ("API"), bpf(2) and Documentation/bpf/. Needs libbpf 1.0 or later and a kernel
with BTF; no compiler and no headers. What is missing is an UnsupportedError that says so.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from tegu.errors import UnsupportedError

__all__ = ["BpfMap", "BpfObject", "KernelTypes", "RingBuffer", "load_library", "possible_cpus"]

_P = ctypes.c_void_p
_S = ctypes.c_char_p
_I = ctypes.c_int
_U = ctypes.c_uint32

_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_num_possible_cpus": (_I, ()),
    "libbpf_set_print": (_P, (_P,)),
    "btf__load_vmlinux_btf": (_P, ()),
    "btf__find_by_name_kind": (_I, (_P, _S, _U)),
    "btf__type_by_id": (_P, (_P, _U)),
    "btf__name_by_offset": (_S, (_P, _U)),
    "btf__free": (None, (_P,)),
    "bpf_object__open_mem": (_P, (_P, ctypes.c_size_t, _P)),
    "bpf_object__load": (_I, (_P,)),
    "bpf_object__close": (None, (_P,)),
    "bpf_object__next_program": (_P, (_P, _P)),
    "bpf_object__find_program_by_name": (_P, (_P, _S)),
    "bpf_object__find_map_by_name": (_P, (_P, _S)),
    "bpf_program__name": (_S, (_P,)),
    "bpf_program__section_name": (_S, (_P,)),
    "bpf_program__set_autoload": (_I, (_P, ctypes.c_bool)),
    "bpf_program__attach": (_P, (_P,)),
    "bpf_program__attach_perf_event": (_P, (_P, _I)),
    "bpf_link__fd": (_I, (_P,)),
    "bpf_link__destroy": (_I, (_P,)),
    "bpf_iter_create": (_I, (_I,)),
    "bpf_map__fd": (_I, (_P,)),
    "bpf_map__type": (_I, (_P,)),
    "bpf_map__key_size": (_U, (_P,)),
    "bpf_map__value_size": (_U, (_P,)),
    "bpf_map__max_entries": (_U, (_P,)),
    "bpf_map__initial_value": (_P, (_P, ctypes.POINTER(ctypes.c_size_t))),
    "bpf_map_lookup_batch": (_I, (_I, _P, _P, _P, _P, ctypes.POINTER(_U), _P)),
    "bpf_map_lookup_elem": (_I, (_I, _P, _P)),
    "ring_buffer__new": (_P, (_I, _P, _P, _P)),
    "ring_buffer__consume": (_I, (_P,)),
    "ring_buffer__free": (None, (_P,)),
}

_PRINT = ctypes.CFUNCTYPE(_I, _I, _P, _P)
_SAMPLE = ctypes.CFUNCTYPE(_I, _P, _P, ctypes.c_size_t)
_BTF_KINDS = {"struct": 4, "enum": 6, "typedef": 8, "func": 12}
_PERCPU = {5, 6, 10}  # include/uapi/linux/bpf.h: BPF_MAP_TYPE_PERCPU_HASH, _ARRAY, LRU_PERCPU_HASH
_BATCH = 512


class _Library:
    """The library with its functions typed, and what it said last."""

    def __init__(self, path: str) -> None:
        try:
            self.dll = ctypes.CDLL(path, use_errno=True)
        except OSError as e:
            raise UnsupportedError(
                f"{path} cannot be loaded", hint="install the package libbpf1"
            ) from e
        for name, (result, arguments) in _FUNCTIONS.items():
            try:
                function = getattr(self.dll, name)
            except AttributeError as e:
                raise UnsupportedError(f"{path} lacks {name}: libbpf 1.0 is needed") from e
            function.restype = result
            function.argtypes = arguments
        self.said: deque[str] = deque(maxlen=400)
        libc = ctypes.CDLL(None)
        libc.vsnprintf.argtypes = (_S, ctypes.c_size_t, _P, _P)

        def keep(level: int, form: int, arguments: int) -> int:
            # LIBBPF_DEBUG is 2. A va_list reaches a function as an address on x86-64 and arm64.
            if level < 2:
                buffer = ctypes.create_string_buffer(8192)
                libc.vsnprintf(buffer, len(buffer), form, arguments)
                self.said.extend(buffer.value.decode(errors="replace").splitlines())
            return 0

        self._keep = _PRINT(keep)
        self.dll.libbpf_set_print(ctypes.cast(self._keep, _P))

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function; a null pointer or a negative number is an OSError."""
        ctypes.set_errno(0)
        result = getattr(self.dll, name)(*arguments)
        if result is None or (isinstance(result, int) and result < 0):
            number = ctypes.get_errno() or (-result if isinstance(result, int) else errno.EINVAL)
            raise OSError(number, f"{name}: {os.strerror(number)}")
        return result


@cache
def load_library(path: str = "libbpf.so.1") -> _Library:
    """Return libbpf; raises UnsupportedError when it is missing or too old."""
    return _Library(path)


@cache
def possible_cpus() -> int:
    """Return how many values a per-CPU map has for each key."""
    return int(load_library().call("libbpf_num_possible_cpus"))


class KernelTypes:
    """The running kernel's own type information (BTF, Documentation/bpf/btf.rst)."""

    def __init__(self) -> None:
        self._library = load_library()
        try:
            self._btf = self._library.call("btf__load_vmlinux_btf")
        except OSError as e:
            raise UnsupportedError(
                "this kernel has no type information (BTF)",
                hint="CONFIG_DEBUG_INFO_BTF gives /sys/kernel/btf/vmlinux",
            ) from e

    def close(self) -> None:
        """Free it."""
        if self._btf:
            self._library.dll.btf__free(self._btf)
            self._btf = None

    def __enter__(self) -> KernelTypes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has(self, kind: str, name: str) -> bool:
        """Whether the kernel has a `kind` ("struct", "enum", "typedef", "func") of that name."""
        return self._find(kind, name) > 0

    def has_tracepoint(self, name: str) -> bool:
        """Whether a BPF program may be attached to the tracepoint (tp_btf)."""
        return self.has("typedef", f"btf_trace_{name}")

    def has_iterator(self, name: str) -> bool:
        """Whether there is a BPF iterator `name`, as in "task" (bpf_iterators.rst)."""
        return self.has("func", f"bpf_iter_{name}")

    def members(self, struct: str) -> list[str]:
        """Return the names of a struct's members; of unnamed ones, none. Unknown: an empty list."""
        return [self._name(m[0]) for m in self._entries("struct", struct, 3)]

    def enum(self, name: str) -> dict[int, str]:
        """Return the values of an enum with their names; unknown: an empty dictionary."""
        return {
            ctypes.c_int32(e[1]).value: self._name(e[0]) for e in self._entries("enum", name, 2)
        }

    def _find(self, kind: str, name: str) -> int:
        found: int = self._library.dll.btf__find_by_name_kind(
            self._btf, name.encode(), _BTF_KINDS[kind]
        )
        return found

    def _entries(self, kind: str, name: str, words: int) -> list[tuple[int, ...]]:
        number = self._find(kind, name)
        if number <= 0:
            return []
        where = self._library.call("btf__type_by_id", self._btf, number)
        # struct btf_type: name_off, info (its low 16 bits count what follows), size.
        count = _U.from_address(where + 4).value & 0xFFFF
        table = (_U * (count * words)).from_address(where + 12)
        return [tuple(table[i : i + words]) for i in range(0, count * words, words)]

    def _name(self, offset: int) -> str:
        found: bytes | None = self._library.dll.btf__name_by_offset(self._btf, offset)
        return (found or b"").decode()


class BpfMap:
    """One map of an object. Keys and values are bytes, laid out as in the program's source."""

    def __init__(self, library: _Library, handle: int) -> None:
        self._library = library
        self.fd = int(library.dll.bpf_map__fd(handle))
        self.per_cpu = int(library.dll.bpf_map__type(handle)) in _PERCPU
        self.key_size = int(library.dll.bpf_map__key_size(handle))
        self.value_size = int(library.dll.bpf_map__value_size(handle))
        self.max_entries = int(library.dll.bpf_map__max_entries(handle))

    @property
    def _slot(self) -> int:
        """Bytes of a value as the kernel hands it out: one for each possible CPU, 8-aligned."""
        if not self.per_cpu:
            return self.value_size
        return (self.value_size + 7) // 8 * 8 * possible_cpus()

    def values(self, data: bytes) -> list[bytes]:
        """Split a value of a per-CPU map into those of the CPUs; of another map, one."""
        if not self.per_cpu:
            return [data]
        step = (self.value_size + 7) // 8 * 8
        return [data[i : i + self.value_size] for i in range(0, len(data), step)]

    def get(self, key: bytes) -> list[bytes]:
        """Return the value of `key`, of each CPU for a per-CPU map; empty when there is none."""
        buffer = ctypes.create_string_buffer(self._slot)
        try:
            self._library.call("bpf_map_lookup_elem", self.fd, key, buffer)
        except OSError as e:
            if e.errno == errno.ENOENT:
                return []
            raise
        return self.values(buffer.raw)

    def __iter__(self) -> Iterator[bytes]:
        """Yield all keys."""
        return (key for key, _ in self.items())

    def items(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """Yield all entries, read in batches (BPF_MAP_LOOKUP_BATCH, Linux 5.6)."""
        batch = _BATCH
        place = ctypes.create_string_buffer(max(8, self.key_size))
        first = True
        while True:
            keys = ctypes.create_string_buffer(self.key_size * batch)
            values = ctypes.create_string_buffer(self._slot * batch)
            count = _U(batch)
            last = False
            try:
                self._library.call(
                    "bpf_map_lookup_batch",
                    self.fd,
                    None if first else place,
                    place,
                    keys,
                    values,
                    ctypes.byref(count),
                    None,
                )
            except OSError as e:
                if e.errno == errno.ENOSPC and batch < self.max_entries:
                    batch *= 4  # one bucket of the hash holds more
                    continue
                if e.errno != errno.ENOENT:
                    raise
                last = True
            first = False
            all_keys, all_values = keys.raw, values.raw
            for i in range(count.value):
                key = all_keys[i * self.key_size : (i + 1) * self.key_size]
                value = all_values[i * self._slot : (i + 1) * self._slot]
                yield key, self.values(value)
            if last:
                return


class RingBuffer:
    """A ring buffer's reader (Documentation/bpf/ringbuf.rst): `take` gets each record's bytes."""

    def __init__(self, source: BpfMap, take: Callable[[bytes], None]) -> None:
        self._library = load_library()
        self._failed: BaseException | None = None

        def sample(_: int, data: int, size: int) -> int:
            try:
                take(ctypes.string_at(data, size))
            except BaseException as e:  # noqa: BLE001 - raised again when C has returned
                self._failed = e
                return -errno.ECANCELED
            return 0

        self._sample = _SAMPLE(sample)
        self._ring = self._library.call(
            "ring_buffer__new", source.fd, ctypes.cast(self._sample, _P), None, None
        )

    def consume(self) -> int:
        """Hand over all that is there, without waiting; returns how many records."""
        count = int(self._library.dll.ring_buffer__consume(self._ring))
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed
        return max(count, 0)

    def close(self) -> None:
        """Free it."""
        if self._ring:
            self._library.dll.ring_buffer__free(self._ring)
            self._ring = None


class BpfObject:
    """A compiled BPF object: opened, configured, loaded, attached; released by `close`."""

    def __init__(self, data: bytes) -> None:
        """Open the object file that is `data`; raises OSError when it is not one."""
        self._library = load_library()
        self._links: list[int] = []
        self._data = data  # libbpf does not copy it
        self._object = self._library.call("bpf_object__open_mem", data, len(data), None)

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach all programs and free everything; may be called twice."""
        while self._links:
            self._library.dll.bpf_link__destroy(self._links.pop())
        if self._object:
            self._library.dll.bpf_object__close(self._object)
            self._object = None

    def programs(self) -> dict[str, str]:
        """Return the section of each program by its name, as in `tp_btf/sched_switch`."""
        found: dict[str, str] = {}
        program = None
        while True:
            program = self._library.dll.bpf_object__next_program(self._object, program)
            if not program:
                return found
            name = self._library.dll.bpf_program__name(program).decode()
            found[name] = self._library.dll.bpf_program__section_name(program).decode()

    def leave_out(self, program: str) -> None:
        """Do not load this program."""
        self._library.call("bpf_program__set_autoload", self._program(program), False)

    def configure(self, section: str, data: bytes) -> None:
        """Fill a read-only section, as in `.rodata.config`, before the object is loaded."""
        size = ctypes.c_size_t()
        where = self._library.call("bpf_map__initial_value", self._map(section), ctypes.byref(size))
        if len(data) > size.value:
            raise ValueError(f"{section} holds {size.value} bytes, not {len(data)}")
        ctypes.memmove(where, data, len(data))

    def load(self) -> None:
        """Load into the kernel; raises UnsupportedError with the kernel's reason when refused."""
        self._library.said.clear()
        try:
            self._library.call("bpf_object__load", self._object)
        except OSError as e:
            if e.errno == errno.EPERM:
                raise UnsupportedError(
                    "no privilege to load BPF programs",
                    hint="run as root, or with CAP_BPF and CAP_PERFMON",
                ) from e
            reason = _reason(self._library.said) or os.strerror(e.errno or 0)
            raise UnsupportedError(f"this kernel refuses the program: {reason}") from e

    def attach(self, program: str, *, perf_event: int | None = None) -> int:
        """Attach a program where its section says, or to a perf event; returns the link.

        The perf event's descriptor is closed with the link.
        """
        handle = self._program(program)
        try:
            link = (
                self._library.call("bpf_program__attach", handle)
                if perf_event is None
                else self._library.call("bpf_program__attach_perf_event", handle, perf_event)
            )
        except OSError as e:
            raise UnsupportedError(f"this kernel does not attach {program}: {e.strerror}") from e
        self._links.append(link)
        return int(link)

    def iterate(self, link: int) -> bytes:
        """Run an attached iterator once and return all that it wrote."""
        fd = int(self._library.call("bpf_iter_create", self._library.dll.bpf_link__fd(link)))
        parts = []
        try:
            while part := os.read(fd, 1 << 16):
                parts.append(part)
        finally:
            os.close(fd)
        return b"".join(parts)

    def map(self, name: str) -> BpfMap:
        """Return a map of the loaded object; raises KeyError."""
        return BpfMap(self._library, self._map(name))

    def _map(self, name: str) -> int:
        try:
            return int(
                self._library.call("bpf_object__find_map_by_name", self._object, name.encode())
            )
        except OSError as e:
            raise KeyError(name) from e

    def _program(self, name: str) -> int:
        try:
            return int(
                self._library.call("bpf_object__find_program_by_name", self._object, name.encode())
            )
        except OSError as e:
            raise KeyError(name) from e


def _reason(said: deque[str]) -> str:
    """Return the line that tells most of what libbpf and the verifier said."""
    lines = [line.strip() for line in said if line.strip()]
    if "-- END PROG LOAD LOG --" in " ".join(lines):
        end = max(i for i, line in enumerate(lines) if "END PROG LOAD LOG" in line)
        # The verifier's last words, before its statistics and after the instructions.
        for line in reversed(lines[:end]):
            if not line.startswith(("processed ", "verification time", "stack depth", "libbpf")):
                return line
    failed = [line for line in lines if "failed" in line]
    return (failed or lines or [""])[0].removeprefix("libbpf: ")
