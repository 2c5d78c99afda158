"""A plan in, one LLVM module's text out: every distinct kernel once, the dot products they share, the team."""

from __future__ import annotations

from openlpu.target.cpu import attention, linear
from openlpu.target.cpu import path as paths
from openlpu.target.cpu.attention import AttentionKernel
from openlpu.target.cpu.attention_block import Areas, AttentionStage
from openlpu.target.cpu.dots import dot_kernels
from openlpu.target.cpu.emit import Function
from openlpu.target.cpu.linear import LinearKernel, LinearStage
from openlpu.target.cpu.mixture import ExpertKernel
from openlpu.target.cpu.mixture_rows import MixtureRows
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.plan import Plan, Spec, Stage
from openlpu.target.cpu.team import Team

PARAMS = [("ptr", "args"), ("ptr", "step"), ("i64", "tile"), ("i64", "rows"), ("ptr", "scratch")]

PREFETCH = "declare void @llvm.prefetch(ptr, i32, i32, i32)\n"
X86 = """declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.sse.stmxcsr(ptr)
define internal i64 @get_control() {
  %at = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %at)
  %word = load i32, ptr %at
  %wide = zext i32 %word to i64
  ret i64 %wide
}
define internal void @set_control(i64 %wide) {
  %at = alloca i32
  %word = trunc i64 %wide to i32
  store i32 %word, ptr %at
  call void @llvm.x86.sse.ldmxcsr(ptr %at)
  ret void
}
"""
ARM = """declare void @llvm.aarch64.isb(i32)
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
define internal i64 @get_control() {
  %word = call i64 @llvm.aarch64.get.fpcr()
  ret i64 %word
}
define internal void @set_control(i64 %word) {
  call void @llvm.aarch64.set.fpcr(i64 %word)
  ret void
}
"""
# Round to nearest even, subnormals kept, no traps.
X86_IEEE, ARM_IEEE = 0x1F80, 0


def names(plan: Plan) -> dict[Spec, str]:
    """Every distinct shape of stage and the name of its kernel."""
    found: dict[Spec, str] = {}
    for stage in plan.stages:
        found.setdefault(stage.spec, f"{stage.kind}_{len(found)}")
    return found


def module(plan: Plan, path: Path, threads: int) -> str:
    """The text of the whole module."""
    linears = [stage.spec for stage in plan.stages if isinstance(stage.spec, LinearStage)]
    used = {(m.format, s.wide > 0) for s in linears for part in s.parts for m in part.matrices()}
    dots = [kernel.text() for kernel in dot_kernels(path, used)]
    stages = [kernel(name, spec, plan, path, threads).text() for spec, name in names(plan).items()]
    return "".join([paths.DECLARES[path.name], *dots, *stages, team_text(path)])


def team_text(path: Path) -> str:
    """The team's functions, with the processor's way to spin and to ask for IEEE arithmetic."""
    if path.machine in paths.X86_64:
        return PREFETCH + X86 + Team("call void @llvm.x86.sse2.pause()", X86_IEEE).text()
    if path.machine in paths.ARM_64:
        return PREFETCH + ARM + Team("call void @llvm.aarch64.isb(i32 15)", ARM_IEEE).text()
    return PREFETCH + Team("", None).text()


def kernel(name: str, spec: Spec, plan: Plan, path: Path, threads: int) -> Function:
    """One stage's kernel."""
    fn = Function(name, "void", PARAMS)
    if isinstance(spec, LinearStage):
        (ExpertKernel if spec.experts else LinearKernel)(fn, path, spec, threads).emit()
    elif isinstance(spec, AttentionStage):
        AttentionKernel(fn, path, spec, threads).emit()
    else:
        MixtureRows(fn, path, plan.cache).emit(spec)
    fn.line("ret void")
    return fn


def tiles(stage: Stage, path: Path, threads: int) -> tuple[int, bool]:
    """(tiles, whether that many per token row) of a stage."""
    if isinstance(stage.spec, LinearStage):
        return stage.spec.tiles(path, threads), False
    if isinstance(stage.spec, AttentionStage):
        return attention.tiles(threads), False
    return 1, True


def scratch_bytes(plan: Plan, path: Path) -> int:
    """The most any tile keeps in its thread's scratch."""
    blocks = [Areas(s.spec).size for s in plan.stages if isinstance(s.spec, AttentionStage)]
    linears = [linear.scratch_bytes(path, s.spec) for s in plan.stages if isinstance(s.spec, LinearStage)]
    return max([*linears, 2 * 4 * plan.cache.k_dim, 4096, *blocks])
