"""A backend that loads any model and answers none: it stands for one that is not installed.

Triton's core checks a configuration before and after it calls a backend, and needs a library for that. This one is the
smallest that it takes: a shared object (System V ABI, ELF) with TRITONBACKEND_ModelInstanceExecute, the only entry that is
not optional (core, backend_manager.cc), which returns TRITONSERVER_ErrorNew(UNKNOWN, SAYS). It is written here byte by byte
because a machine that lints has no compiler.
"""

from __future__ import annotations

import platform
import struct

SAYS = "a stand-in of the linter answers nothing"
EXECUTE, ERROR = "TRITONBACKEND_ModelInstanceExecute", "TRITONSERVER_ErrorNew"
PAGE = 0x10000  # as large as any machine's
MACHINES = {"x86_64": 62, "aarch64": 183}
ABSOLUTE = {"x86_64": 1, "aarch64": 257}  # R_X86_64_64, R_AARCH64_ABS64
HEADER, PROGRAM, SYMBOL = 64, 56, 24  # sizes of Elf64_Ehdr, Elf64_Phdr, Elf64_Sym
READ, WRITE, RUN = 4, 2, 1
LOAD, DYNAMIC, STACK = 1, 2, 0x6474E551


def library(machine: str | None = None) -> bytes:
    """The shared object, for this machine or another ("x86_64", "aarch64").

    Raises:
        ValueError: Triton runs on no such machine.

    >>> library("x86_64")[:4]
    b'\\x7fELF'
    """
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise ValueError(f"there is no stand-in for {machine}, only for {', '.join(MACHINES)}")
    names = b"\0" + EXECUTE.encode() + b"\0" + ERROR.encode() + b"\0"
    slot = PAGE  # the first word of what can be written: where the loader puts TRITONSERVER_ErrorNew
    dynamic = slot + 8
    table = (
        HEADER + 4 * PROGRAM
    )  # the hash table, the symbols, the relocation, the names, the message, the code: one by one
    symbols = table + 24
    relocation = symbols + 3 * SYMBOL
    strings = relocation + 24
    message = strings + len(names)
    code = (message + len(SAYS) + 1 + 7) // 8 * 8
    read_only = b"".join(
        (
            struct.pack("<6I", 1, 3, 1, 0, 2, 0),  # one bucket, three symbols: 1, then 2
            bytes(SYMBOL),
            struct.pack("<IBBHQQ", 1, 0x12, 0, 1, code, 16),  # global, a function
            struct.pack("<IBBHQQ", 2 + len(EXECUTE), 0x10, 0, 0, 0, 0),  # global, not defined here
            struct.pack("<QQq", slot, 2 << 32 | ABSOLUTE[machine], 0),
            names,
            SAYS.encode() + b"\0",
        )
    ).ljust(code - table, b"\0")
    instructions = _instructions(machine, code, message, slot)
    entries = (
        (4, table),  # DT_HASH
        (5, strings),  # DT_STRTAB
        (6, symbols),  # DT_SYMTAB
        (7, relocation),  # DT_RELA
        (8, 24),  # DT_RELASZ
        (9, 24),  # DT_RELAENT
        (10, len(names)),  # DT_STRSZ
        (11, SYMBOL),  # DT_SYMENT
        (0, 0),
    )
    tail = bytes(8) + b"".join(struct.pack("<QQ", *entry) for entry in entries)
    end = code + len(instructions)
    programs = (
        (LOAD, READ | RUN, 0, end),
        (LOAD, READ | WRITE, slot, len(tail)),
        (DYNAMIC, READ | WRITE, dynamic, len(tail) - 8),
        (STACK, READ | WRITE, 0, 0),
    )
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64 bits, little endian
    header += struct.pack("<HHIQQQIHHHHHH", 3, MACHINES[machine], 1, 0, HEADER, 0, 0, HEADER, PROGRAM, 4, 0, 0, 0)
    header += b"".join(
        struct.pack("<IIQQQQQQ", kind, flags, place, place, place, size, size, PAGE)
        for kind, flags, place, size in programs
    )
    return (header + read_only + instructions).ljust(PAGE, b"\0") + tail


def _instructions(machine: str, code: int, message: int, slot: int) -> bytes:
    """Jump to what the slot says, with 0 and the message's address as arguments."""
    if machine == "x86_64":
        lea, jump = code + 2, code + 9
        return (
            b"\x31\xff\x48\x8d\x35"
            + struct.pack("<i", message - lea - 7)
            + b"\xff\x25"
            + struct.pack("<i", slot - jump - 6)
        )
    back = (message - (code + 4)) & 0x1FFFFF
    return struct.pack(
        "<4I",
        0x52800000,  # mov w0, #0
        0x10000001 | (back & 3) << 29 | (back >> 2) << 5,  # adr x1, message
        0x58000010 | ((slot - (code + 8)) // 4 & 0x7FFFF) << 5,  # ldr x16, slot
        0xD61F0200,  # br x16
    )
