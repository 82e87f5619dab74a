"""The system calls that a program in the sandbox may not make, as a filter for Linux's seccomp.

Namespaces hide the network, the files and the other processes. The filter takes away what is left: making processes
and threads, which bounds their number by one, for every user (the kernel's own limit does not hold for root);
memory that belongs to no process; and the parts of the kernel in which most ways out have been found.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF, linux/bpf_common.h
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000  # linux/seccomp.h; the errno is added to the last
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCHITECTURE = 0, 4  # places in struct seccomp_data


@dataclass(frozen=True)
class _Machine:
    """A processor's number in linux/audit.h, the first number that is no system call of its own, and the calls."""

    audit: int
    limit: int
    refused: Mapping[str, int]


_SHARED = {
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "pidfd_open": 434, "clone3": 435,
    "mount_setattr": 442, "memfd_secret": 447,
}  # fmt: skip
MACHINES: Mapping[str, _Machine] = {
    "x86_64": _Machine(
        0xC000003E,
        0x40000000,  # from here on: the calls of the x32 interface
        _SHARED
        | {
            "clone": 56, "fork": 57, "vfork": 58, "socket": 41, "socketpair": 53, "ptrace": 101, "shmget": 29,
            "msgget": 68, "semget": 64, "mq_open": 240, "memfd_create": 319, "process_vm_readv": 310,
            "process_vm_writev": 311, "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155,
            "add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "userfaultfd": 323, "perf_event_open": 298,
        },
    ),
    "aarch64": _Machine(
        0xC00000B7,
        0xFFFFFFFF,
        _SHARED
        | {
            "clone": 220, "socket": 198, "socketpair": 199, "ptrace": 117, "shmget": 194, "msgget": 186,
            "semget": 190, "mq_open": 180, "memfd_create": 279, "process_vm_readv": 270, "process_vm_writev": 271,
            "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "add_key": 217,
            "request_key": 218, "keyctl": 219, "bpf": 280, "userfaultfd": 282, "perf_event_open": 241,
        },
    ),
}  # fmt: skip
"""The processors whose system calls are known here, by the name that `platform.machine` gives."""


def filter_program(machine: str = platform.machine()) -> bytes:
    """Return the filter as an array of `struct sock_filter`; KeyError for another processor."""
    known = MACHINES[machine]
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, known.audit, yes=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, known.limit, no=1),
        _step(_RETURN, _KILL),
    ]
    for name, number in known.refused.items():
        error = _ENOSYS if name == "clone3" else _EPERM  # the C library then tries clone
        steps += [_step(_EQUAL, number, no=1), _step(_RETURN, _REFUSE | error)]
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """Return one instruction; `yes` and `no` say how many instructions a comparison skips."""
    return struct.pack("=HBBI", code, yes, no, value)
