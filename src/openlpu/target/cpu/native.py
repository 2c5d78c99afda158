"""LLVM IR text in, callable machine code out."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path as File
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from openlpu.target.cpu.path import Path


def machine(path: Path, triple: str = "") -> llvm.TargetMachine:
    """A code generator restricted to the path's features: for this system, or for the one a triple names."""
    if triple:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    else:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(triple or llvm.get_default_triple())
    reloc = "pic" if triple else "default"
    return target.create_target_machine(cpu=path.cpu, features=path.features, opt=2, reloc=reloc, jit=not triple)


def optimised(text: str, generator: llvm.TargetMachine) -> llvm.ModuleRef:
    """A module of this IR text as the generator takes it: stack slots turned into registers."""
    module = llvm.parse_assembly(text)
    module.triple = generator.triple
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.run(module, llvm.create_pass_builder(generator, llvm.create_pipeline_tuning_options()))
    return module


class Module:
    """Compiled code; ``function`` gives its functions as ctypes callables (they release Python's lock)."""

    def __init__(self, text: str, path: Path) -> None:
        self._machine = machine(path)
        self.module = optimised(text, self._machine)
        self._load(self._machine.emit_object(self.module), path)

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


def kernels_hash() -> str:
    """Hash of what generates machine code: this folder, and the compiler behind it."""
    digest = hashlib.sha256(f"llvmlite {llvmlite.__version__}".encode())
    for source in sorted(File(__file__).parent.glob("*.py")):  # a version number would not notice an edit
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
