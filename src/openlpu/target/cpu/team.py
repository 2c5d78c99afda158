"""A table of stages in, native code that lets threads walk it together out.

All coordination is one 64-bit word, ``epoch | stage | tile``: the step, the stage everybody works on, the next
tile nobody has claimed.  A thread claims a tile by adding one to the word with compare-and-swap; whoever finishes
the last tile of a stage moves the word to the next stage.  A thread holds no position of its own: one that was
descheduled reads the word and joins whatever is current, and nobody waits for a thread that holds no tile.
Waiting spins for a while, then yields the core; between steps it sleeps on a condition variable.
"""

from __future__ import annotations

from openlpu.target.cpu.emit import Function, Slot, Value

EPOCH_BITS, STAGE_BITS, TILE_BITS = 28, 12, 24
# The shared block: the word, the count of finished tiles, and what sleeping needs, each on its own cache lines.
WORD_AT, DONE_AT, SLEEPERS_AT, QUIT_AT, MUTEX_AT, CONDITION_AT, PLAN_AT = 0, 128, 256, 264, 384, 512, 640
TEAM_BYTES = 768
# The plan, from PLAN_AT: table, stage count, step header, scratch, scratch bytes per thread.
ENTRY_BYTES = 32  # a stage: kernel, arguments, tiles, flags
PER_ROW, LOGITS_ONLY = 1, 2  # flags: tiles count per token row; only rows whose logits are asked for
SPINS_IN_STEP, SPINS_IDLE, YIELDS_IDLE = 200, 20000, 20

DECLARES = """declare i32 @sched_yield()
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)
"""


class Team:
    """Generates the functions of a team: ``prepare``, ``run_step``, ``worker``, ``quit``.

    ``pause`` is the processor's spin hint as one IR line, empty where there is none.  ``control`` names the
    intrinsics that read and write the floating-point control word and gives its value for IEEE arithmetic: a
    caller that flushes subnormals to zero must not change a bit, and gets its own setting back.
    """

    def __init__(self, pause: str, control: tuple[str, str, int] | None) -> None:
        self.pause, self.control = pause, control

    def _ieee(self, fn: Function) -> Slot | None:
        """Set IEEE arithmetic for this thread; returns what was set before."""
        if not self.control:
            return None
        read, write, word = self.control
        before, ours = fn.slot("i32"), fn.slot("i32", word)
        fn.call("void", read, before.pointer)
        fn.call("void", write, ours.pointer)
        return before

    def text(self) -> str:
        functions = [self._prepare(), self._tiles(), self._help(), self._advance(), self._run_step(),
                     self._worker(), self._quit(), self._wait(SPINS_IN_STEP, "wait_in_step")]
        return DECLARES + "".join(fn.text() for fn in functions)

    def _plan(self, team: Value, field: int, kind: str = "i64") -> Value:
        return team.at(PLAN_AT + 8 * field).load(kind, 8)

    def _prepare(self) -> Function:
        """Initialise what sleeping needs; the word starts behind the last stage: idle."""
        fn = Function("prepare", "void", [("ptr", "team")])
        team, null = fn.params["team"], Value(fn, "ptr", "null")
        fn.call("i32", "@pthread_mutex_init", team.at(MUTEX_AT), null)
        fn.call("i32", "@pthread_cond_init", team.at(CONDITION_AT), null)
        _store_atomic(team.at(WORD_AT), self._plan(team, 1) << TILE_BITS)
        fn.line("ret void")
        return fn

    def _tiles(self) -> Function:
        """How many tiles a stage has in this step, given its table entry and the step header."""
        fn = Function("tiles", "internal i64", [("ptr", "entry"), ("ptr", "step")])
        entry, step = fn.params["entry"], fn.params["step"]
        flags = entry.at(24).load("i64", 8)
        rows = _rows(flags, step)
        per_row = (flags & PER_ROW).compare("ne", 0)
        some = fn.select(rows.compare("sgt", 0), fn.value("i64", 1), 0)
        result = entry.at(16).load("i64", 8) * fn.select(per_row, rows, some)
        fn.line(f"ret i64 {result.ref}")
        return fn

    def _wait(self, spins: int, name: str) -> Function:
        """One turn of waiting: a hint to the core, and past ``spins`` turns the core itself."""
        fn = Function(name, "internal void", [("i64", "turn")])
        if self.pause:
            fn.line(self.pause)
        with fn.when(fn.params["turn"].compare("sgt", spins)):
            fn.call("i32", "@sched_yield")
        fn.line("ret void")
        return fn

    def _advance(self) -> Function:
        """Move the word from ``stage`` to the next one that has tiles; past the last one the step is over."""
        fn = Function("advance", "internal void", [("ptr", "team"), ("i64", "epoch"), ("i64", "stage")])
        team, step = fn.params["team"], self._plan(fn.params["team"], 2, "ptr")
        table, count = self._plan(team, 0, "ptr"), self._plan(team, 1)
        stage = fn.slot("i64", fn.params["stage"])
        again, check, done = fn.label(), fn.label(), fn.label()
        fn.jump(again)
        fn.start(again)
        fn.branch(stage.get().compare("slt", count), check, done)
        fn.start(check)
        tiles = fn.call("i64", "@tiles", table.at(stage.get() * ENTRY_BYTES), step)
        stage.set(stage.get() + fn.select(tiles.compare("eq", 0), fn.value("i64", 1), 0))
        fn.branch(tiles.compare("eq", 0), again, done)
        fn.start(done)
        word = (fn.params["epoch"] << (STAGE_BITS + TILE_BITS)) | (stage.get() << TILE_BITS)
        _store_atomic(team.at(WORD_AT), word)
        fn.line("ret void")
        return fn

    def _help(self) -> Function:
        """Work on the step in progress until the word stands behind the last stage."""
        fn = Function("help", "internal void", [("ptr", "team"), ("i64", "thread")])
        team = fn.params["team"]
        table, count, step = self._plan(team, 0, "ptr"), self._plan(team, 1), self._plan(team, 2, "ptr")
        scratch = self._plan(team, 3, "ptr").at(fn.params["thread"] * self._plan(team, 4))
        turns = fn.slot("i64")
        again, look, claim, wait, work, last, done = (fn.label() for _ in range(7))
        fn.jump(again)
        fn.start(again)
        word = _load_atomic(team.at(WORD_AT))
        stage = (word >> TILE_BITS) & ((1 << STAGE_BITS) - 1)
        tile = word & ((1 << TILE_BITS) - 1)
        fn.branch(stage.compare("slt", count), look, done)
        fn.start(look)
        entry = table.at(stage * ENTRY_BYTES)
        tiles = fn.call("i64", "@tiles", entry, step)
        rows = _rows(entry.at(24).load("i64", 8), step)
        fn.branch(tile.compare("slt", tiles), claim, wait)
        fn.start(wait)
        turns.set(turns.get() + 1)
        fn.call("void", "@wait_in_step", turns.get())
        fn.jump(again)
        fn.start(claim)
        swap = f"cmpxchg ptr {team.at(WORD_AT).ref}, i64 {word.ref}, i64 {(word + 1).ref} acq_rel monotonic"
        pair = fn.define("{ i64, i1 }", swap)
        fn.branch(fn.define("i1", f"extractvalue {pair.kind} {pair.ref}, 1"), work, again)
        fn.start(work)
        turns.set(fn.value("i64", 0))
        kernel, args = entry.load("ptr", 8), entry.at(8).load("ptr", 8)
        fn.call("void", kernel.ref, args, step, tile, rows, scratch)
        finished = fn.define("i64", f"atomicrmw add ptr {team.at(DONE_AT).ref}, i64 1 acq_rel")
        fn.branch(finished.compare("eq", tiles - 1), last, again)
        fn.start(last)
        _store_atomic(team.at(DONE_AT), fn.value("i64", 0))
        epoch = (word >> (STAGE_BITS + TILE_BITS)) & ((1 << EPOCH_BITS) - 1)
        fn.call("void", "@advance", team, epoch, stage + 1)
        fn.jump(again)
        fn.start(done)
        fn.line("ret void")
        return fn

    def _run_step(self) -> Function:
        """One step of the rows in the header, by this thread and whoever else is in the team."""
        fn = Function("run_step", "void", [("ptr", "team")])
        team = fn.params["team"]
        before = self._ieee(fn)
        epoch = ((_load_atomic(team.at(WORD_AT)) >> (STAGE_BITS + TILE_BITS)) + 1) & ((1 << EPOCH_BITS) - 1)
        fn.call("void", "@advance", team, epoch, fn.value("i64", 0))
        with fn.when(_load_atomic(team.at(SLEEPERS_AT)).compare("sgt", 0)):
            self._wake(team)
        fn.call("void", "@help", team, fn.value("i64", 0))
        if before and self.control:
            fn.call("void", self.control[1], before.pointer)
        fn.line("ret void")
        return fn

    def _wake(self, team: Value) -> None:
        fn = team.fn
        fn.call("i32", "@pthread_mutex_lock", team.at(MUTEX_AT))
        fn.call("i32", "@pthread_cond_broadcast", team.at(CONDITION_AT))
        fn.call("i32", "@pthread_mutex_unlock", team.at(MUTEX_AT))

    def _quit(self) -> Function:
        """Let every worker return."""
        fn = Function("quit", "void", [("ptr", "team")])
        team = fn.params["team"]
        _store_atomic(team.at(QUIT_AT), fn.value("i64", 1))
        self._wake(team)
        fn.line("ret void")
        return fn

    def _worker(self) -> Function:
        """A worker's life: work on steps as they come, spin, yield, then sleep between them."""
        fn = Function("worker", "void", [("ptr", "team"), ("i64", "thread")])
        team = fn.params["team"]
        self._ieee(fn)
        count, turns = self._plan(team, 1), fn.slot("i64")
        again, idle, busy, spin, nap, end = (fn.label() for _ in range(6))
        fn.jump(again)
        fn.start(again)
        fn.branch(_load_atomic(team.at(QUIT_AT)).compare("ne", 0), end, idle)
        fn.start(idle)
        fn.branch(_is_idle(team, count), spin, busy)
        fn.start(busy)
        fn.call("void", "@help", team, fn.params["thread"])
        turns.set(fn.value("i64", 0))
        fn.jump(again)
        fn.start(spin)
        turns.set(turns.get() + 1)
        if self.pause:
            fn.line(self.pause)
        with fn.when(turns.get().compare("sgt", SPINS_IDLE)):
            fn.call("i32", "@sched_yield")
        fn.branch(turns.get().compare("sgt", SPINS_IDLE + YIELDS_IDLE), nap, again)
        fn.start(nap)
        self._sleep(team, count)
        turns.set(fn.value("i64", 0))
        fn.jump(again)
        fn.start(end)
        fn.line("ret void")
        return fn

    def _sleep(self, team: Value, count: Value) -> None:
        """Sleep until woken, unless work came first: the sleeper registers, then looks again, under the lock."""
        fn = team.fn
        fn.call("i32", "@pthread_mutex_lock", team.at(MUTEX_AT))
        fn.define("i64", f"atomicrmw add ptr {team.at(SLEEPERS_AT).ref}, i64 1 seq_cst")
        stay = _is_idle(team, count) & _load_atomic(team.at(QUIT_AT)).compare("eq", 0)
        with fn.when(stay):
            fn.call("i32", "@pthread_cond_wait", team.at(CONDITION_AT), team.at(MUTEX_AT))
        fn.define("i64", f"atomicrmw sub ptr {team.at(SLEEPERS_AT).ref}, i64 1 seq_cst")
        fn.call("i32", "@pthread_mutex_unlock", team.at(MUTEX_AT))


def _is_idle(team: Value, count: Value) -> Value:
    word = _load_atomic(team.at(WORD_AT))
    return ((word >> TILE_BITS) & ((1 << STAGE_BITS) - 1)).compare("eq", count)


def _rows(flags: Value, step: Value) -> Value:
    """Token rows a stage serves: all of the step's, or those whose logits are asked for."""
    fn = flags.fn
    wanted = (flags & LOGITS_ONLY).compare("ne", 0)
    at = fn.select(wanted, fn.value("i64", 4), 0)
    return step.at(at).load("i32").cast("sext", "i64")


def _load_atomic(at: Value) -> Value:
    return at.fn.define("i64", f"load atomic i64, ptr {at.ref} seq_cst, align 8")


def _store_atomic(at: Value, value: Value) -> None:
    at.fn.line(f"store atomic i64 {value.ref}, ptr {at.ref} seq_cst, align 8")
