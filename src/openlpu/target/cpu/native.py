"""LLVM IR text in, callable machine code out."""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm

from openlpu.target.cpu.path import Path


def machine(path: Path) -> llvm.TargetMachine:
    """A code generator restricted to the path's features."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=path.cpu, features=path.features, opt=2, jit=True)


class Module:
    """Compiled code; ``function`` gives its functions as ctypes callables (they release Python's lock)."""

    def __init__(self, text: str, path: Path) -> None:
        self._machine = machine(path)
        module = llvm.parse_assembly(text)
        module.triple = llvm.get_default_triple()
        passes = llvm.create_new_module_pass_manager()
        passes.add_sroa_pass()
        builder = llvm.create_pass_builder(self._machine, llvm.create_pipeline_tuning_options())
        passes.run(module, builder)
        self.module = module
        self._load(self._machine.emit_object(module), path)

    @classmethod
    def stored(cls, code: bytes, path: Path) -> Module:
        """A module of machine code that :attr:`code` gave once."""
        made = cls.__new__(cls)
        made._load(code, path)
        return made

    def _load(self, code: bytes, path: Path) -> None:
        self.code = code
        target = machine(path)
        empty = llvm.parse_assembly("")
        empty.triple = llvm.get_default_triple()
        self._engine: Any = llvm.create_mcjit_compiler(empty, target)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        return self._engine.get_function_address(name)

    def function(self, name: str, *kinds: type) -> Any:
        """A void function of C argument types."""
        return ctypes.CFUNCTYPE(None, *kinds)(self.address(name))

    def assembly(self) -> str:
        """The machine code as text."""
        return self._machine.emit_assembly(self.module)

    def close(self) -> None:
        """Free the code; nothing may run in it any more."""
        self._engine.close()
