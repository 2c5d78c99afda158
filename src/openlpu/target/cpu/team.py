"""A table of stages in, native code that lets threads walk it together out.

One 64-bit word, ``epoch | stage | tiles``, says where everybody is.  The tiles of a stage are split evenly into one
*segment* per thread, and a segment has a word of its own, ``epoch | stage | front | back``: its thread claims tiles
from the front, one after the other as they lie in memory; a thread that has none left claims from the back of
others' segments.  Claims are compare-and-swap, and a segment whose word is of an earlier stage is untouched, so
nobody resets anything.  Finished tiles are counted; whoever completes the count does the stages of one tile that
follow, alone, and moves the word to the next one worth sharing.

A thread holds no position of its own: one that was descheduled reads the word and joins whatever is current, and
nobody waits for a thread that holds no tile.  ``waiting.py`` says what happens while there is no tile; between steps
a worker sleeps.
"""

from __future__ import annotations

from openlpu.target.cpu import waiting
from openlpu.target.cpu.emit import Function, Value
from openlpu.target.cpu.waiting import (
    CONDITION_AT,
    DONE_AT,
    FIRST_PENALTY,
    LOOKED_AT,
    MUTEX_AT,
    OWN_BYTES,
    PENALTY_AT,
    PLAN_AT,
    PLAYERS_AT,
    QUIT_AT,
    SEGMENT_AT,
    SLEEPERS_AT,
    WORD_AT,
    load_atomic,
    locked,
    store_atomic,
)

# Both words: epoch and stage in the upper bits; below, the tiles of the stage, or those taken from a segment's ends.
EPOCH_BITS, STAGE_BITS, TILE_BITS = 24, 12, 14
STAGE_AT, EPOCH_AT = 2 * TILE_BITS, 2 * TILE_BITS + STAGE_BITS
FRONT, BACK, COUNT_MASK = 1 << TILE_BITS, 1, (1 << 2 * TILE_BITS) - 1
TABLE, COUNT, STEP, AREA, AREA_BYTES, THREADS = range(6)  # the plan's words, from PLAN_AT
ENTRY_BYTES = 40  # a stage: kernel, arguments, tiles, flags, what to fetch ahead
PER_ROW, LOGITS_ONLY = 1, 2  # flags: tiles count per token row; only rows whose logits are asked for
SPINS_IDLE, YIELDS_IDLE = 20000, 20


class Team:
    """Generates the functions of a team: ``prepare``, ``run_step``, ``worker``, ``quit``.

    ``pause`` is the processor's spin hint as one IR line, empty where there is none.  ``ieee`` is the floating-point
    control word for IEEE arithmetic, where ``get_control`` and ``set_control`` read and write it: a caller that
    flushes subnormals to zero must not change a bit, and gets its own setting back.
    """

    def __init__(self, pause: str, ieee: int | None) -> None:
        self.pause, self.ieee = pause, ieee

    def text(self) -> str:
        """The team's functions and those of waiting."""
        functions = [self._prepare(), self._tiles(), self._work(), self._advance(), self._claim(), self._share(),
                     self._help(), self._run_step(), self._worker(), self._quit()]
        return waiting.text(self.pause) + "".join(fn.text() for fn in functions)

    def _ieee(self, fn: Function) -> Value | None:
        """Set IEEE arithmetic for this thread; returns what was set before."""
        if self.ieee is None:
            return None
        before = fn.call("i64", "@get_control")
        fn.call("void", "@set_control", fn.value("i64", self.ieee))
        return before

    def _prepare(self) -> Function:
        """Initialise what waiting needs; the word starts behind the last stage: idle."""
        fn = Function("prepare", "void", [("ptr", "team")])
        team, null = fn.params["team"], Value(fn, "ptr", "null")
        fn.call("i32", "@pthread_mutex_init", team.at(MUTEX_AT), null)
        fn.call("i32", "@pthread_cond_init", team.at(CONDITION_AT), null)
        store_atomic(team.at(PLAYERS_AT), _plan(team, THREADS))
        team.at(PENALTY_AT).store(fn.value("i64", FIRST_PENALTY), 8)
        store_atomic(team.at(WORD_AT), _plan(team, COUNT) << STAGE_AT)
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

    def _work(self) -> Function:
        """One tile of a stage."""
        params = [("ptr", "entry"), ("ptr", "step"), ("i64", "tile"), ("ptr", "own")]
        fn = Function("work", "internal void", params)
        entry, step, tile, own = fn.params.values()
        rows = _rows(entry.at(24).load("i64", 8), step)
        kernel, args = entry.load("ptr", 8), entry.at(8).load("ptr", 8)
        fn.call("void", kernel.ref, args, step, tile, rows, own.at(OWN_BYTES))
        fn.line("ret void")
        return fn

    def _advance(self) -> Function:
        """From ``stage`` on, do what is one tile, and move the word to the next stage that has more.

        Past the last one the step is over.
        """
        params = [("ptr", "team"), ("i64", "epoch"), ("i64", "stage"), ("ptr", "own")]
        fn = Function("advance", "internal void", params)
        team, own = fn.params["team"], fn.params["own"]
        count, step = _plan(team, COUNT), _plan(team, STEP, "ptr")
        stage, shared = fn.slot("i64", fn.params["stage"]), fn.slot("i64")
        again, check, alone, after, done = (fn.label() for _ in range(5))
        fn.jump(again)
        fn.start(again)
        fn.branch(stage.get().compare("slt", count), check, done)
        fn.start(check)
        entry = _entry(team, stage.get())
        tiles = fn.call("i64", "@tiles", entry, step)
        shared.set(tiles)
        fn.branch(tiles.compare("sgt", 1), done, alone)
        fn.start(alone)
        with fn.when(tiles.compare("eq", 1)):
            fn.call("void", "@work", entry, step, fn.value("i64", 0), own)
        fn.jump(after)
        fn.start(after)
        stage.set(stage.get() + 1)
        fn.jump(again)
        fn.start(done)
        word = (fn.params["epoch"] << EPOCH_AT) | (stage.get() << STAGE_AT) | shared.get()
        store_atomic(team.at(WORD_AT), word)
        fn.line("ret void")
        return fn

    def _claim(self) -> Function:
        """A tile of a segment, from its front or (``end`` = BACK) its back, or -1 if it has none left."""
        params = [("ptr", "team"), ("i64", "word"), ("i64", "segment"), ("i64", "end")]
        fn = Function("claim", "internal i64", params)
        team, word, segment, end = fn.params.values()
        threads, tiles, at = _plan(team, THREADS), word & COUNT_MASK, _own(team, segment).at(SEGMENT_AT)
        first, stop = ((tiles * (segment + i)).udiv(threads) for i in range(2))
        again, current, attempt, got, none = (fn.label() for _ in range(5))
        stage = word & ~COUNT_MASK
        fn.jump(again)
        fn.start(again)
        seen = load_atomic(at)
        ahead = stage - (seen & ~COUNT_MASK)
        fn.branch(ahead.compare("slt", 0), none, current)  # this thread is late: the word has moved on
        fn.start(current)
        taken = fn.select(ahead.compare("eq", 0), seen & COUNT_MASK, 0)
        front, back = taken >> TILE_BITS, taken & (FRONT - 1)
        fn.branch((front + back).compare("slt", stop - first), attempt, none)
        fn.start(attempt)
        swap = f"cmpxchg ptr {at.ref}, i64 {seen.ref}, i64 {(stage | (taken + end)).ref} acq_rel monotonic"
        pair = fn.define("{ i64, i1 }", swap)
        fn.branch(fn.define("i1", f"extractvalue {pair.kind} {pair.ref}, 1"), got, again)
        fn.start(got)
        tile = fn.select(end.compare("eq", FRONT), first + front, stop - 1 - back)
        fn.line(f"ret i64 {tile.ref}")
        fn.start(none)
        fn.line("ret i64 -1")
        return fn

    def _share(self) -> Function:
        """Do tiles of the word's stage until none is left, then, if this thread completed it, what follows alone."""
        fn = Function("share", "internal void", [("ptr", "team"), ("i64", "thread"), ("i64", "word")])
        team, thread, word = fn.params.values()
        threads, step, own = _plan(team, THREADS), _plan(team, STEP, "ptr"), _own(team, thread)
        entry, players = _entry(team, _stage(word)), load_atomic(team.at(PLAYERS_AT))
        away, finished, tile = (fn.slot("i64") for _ in range(3))  # segments away from its own
        again, work, stolen, empty, report, after, further, last, done = (fn.label() for _ in range(9))
        fn.jump(again)
        fn.start(again)
        segment, other = (thread + away.get()).urem(threads), away.get().compare("ne", 0)
        theirs = other & segment.compare("slt", players)  # of a thread on the bench, all from the front
        tile.set(fn.call("i64", "@claim", team, word, segment, fn.select(theirs, fn.value("i64", BACK), FRONT)))
        fn.branch(tile.get().compare("slt", 0), empty, work)
        fn.start(work)
        fn.call("void", "@work", entry, step, tile.get(), own)
        finished.set(finished.get() + 1)
        fn.branch(other, report, again)
        fn.start(empty)
        fn.branch(finished.get().compare("eq", 0), further, report)
        fn.start(report)
        count = f"atomicrmw add ptr {team.at(DONE_AT).ref}, i64 {finished.get().ref} acq_rel"
        complete = (fn.define("i64", count) + finished.get()).compare("eq", word & COUNT_MASK)
        finished.set(fn.value("i64", 0))
        fn.branch(complete, last, again)
        fn.start(further)
        away.set(away.get() + 1)
        fn.branch(away.get().compare("slt", threads), again, done)
        fn.start(last)
        store_atomic(team.at(DONE_AT), fn.value("i64", 0))
        epoch = (word >> EPOCH_AT) & ((1 << EPOCH_BITS) - 1)
        fn.call("void", "@advance", team, epoch, _stage(word) + 1, own)
        fn.jump(done)
        fn.start(done)
        fn.line("ret void")
        return fn

    def _help(self) -> Function:
        """Work on the step in progress until the word stands behind the last stage, or this thread is benched."""
        fn = Function("help", "internal void", [("ptr", "team"), ("i64", "thread")])
        team, thread = fn.params["team"], fn.params["thread"]
        count, own = _plan(team, COUNT), _own(team, thread)
        own.at(LOOKED_AT).store(fn.call("i64", "@clock"), 8)
        turns, seen = fn.slot("i64"), fn.slot("i64")
        again, play, look, begin, wait, done = (fn.label() for _ in range(6))
        fn.jump(again)
        fn.start(again)
        word = load_atomic(team.at(WORD_AT))
        fn.branch(_stage(word).compare("slt", count), play, done)
        fn.start(play)
        fn.branch(thread.compare("slt", load_atomic(team.at(PLAYERS_AT))), look, done)
        fn.start(look)
        fn.branch(word.compare("eq", seen.get()), wait, begin)
        fn.start(begin)
        turns.set(fn.value("i64", 0))
        seen.set(word)
        fn.call("void", "@share", team, thread, word)
        fn.jump(again)
        fn.start(wait)
        turns.set(turns.get() + 1)
        fn.call("void", "@wait", team, own, _entry(team, _stage(word)), thread, turns.get())
        fn.jump(again)
        fn.start(done)
        fn.line("ret void")
        return fn

    def _run_step(self) -> Function:
        """One step of the rows in the header, by this thread and whoever else is in the team."""
        fn = Function("run_step", "void", [("ptr", "team")])
        team, zero = fn.params["team"], fn.value("i64", 0)
        before = self._ieee(fn)
        with fn.when(load_atomic(team.at(PLAYERS_AT)).compare("slt", _plan(team, THREADS))):
            fn.call("void", "@recall", team)
        epoch = ((load_atomic(team.at(WORD_AT)) >> EPOCH_AT) + 1) & ((1 << EPOCH_BITS) - 1)
        fn.call("void", "@advance", team, epoch, zero, _own(team, zero))
        with fn.when(load_atomic(team.at(SLEEPERS_AT)).compare("sgt", 0)):
            fn.call("void", "@wake", team)
        fn.call("void", "@help", team, zero)
        if before:
            fn.call("void", "@set_control", before)
        fn.line("ret void")
        return fn

    def _quit(self) -> Function:
        """Let every worker return."""
        fn = Function("quit", "void", [("ptr", "team")])
        store_atomic(fn.params["team"].at(QUIT_AT), fn.value("i64", 1))
        fn.call("void", "@wake", fn.params["team"])
        fn.line("ret void")
        return fn

    def _worker(self) -> Function:
        """A worker's life: work on steps as they come, spin, yield, then sleep between them or while benched."""
        fn = Function("worker", "void", [("ptr", "team"), ("i64", "thread")])
        team, thread = fn.params["team"], fn.params["thread"]
        self._ieee(fn)
        last = _entry(team, _plan(team, COUNT) - 1)
        turns = fn.slot("i64")
        again, play, idle, busy, spin, nap, end = (fn.label() for _ in range(7))
        fn.jump(again)
        fn.start(again)
        fn.branch(load_atomic(team.at(QUIT_AT)).compare("ne", 0), end, play)
        fn.start(play)
        fn.branch(thread.compare("slt", load_atomic(team.at(PLAYERS_AT))), idle, nap)
        fn.start(idle)
        fn.branch(_is_idle(team), spin, busy)
        fn.start(busy)
        fn.call("void", "@help", team, thread)
        turns.set(fn.value("i64", 0))
        fn.jump(again)
        fn.start(spin)
        turns.set(turns.get() + 1)
        fn.call("i64", "@fetch", _own(team, thread), last, thread)
        if self.pause:
            fn.line(self.pause)
        with fn.when(turns.get().compare("sgt", SPINS_IDLE)):
            fn.call("i32", "@sched_yield")
        fn.branch(turns.get().compare("sgt", SPINS_IDLE + YIELDS_IDLE), nap, again)
        fn.start(nap)
        _sleep(team, thread)
        turns.set(fn.value("i64", 0))
        fn.jump(again)
        fn.start(end)
        fn.line("ret void")
        return fn


def _sleep(team: Value, thread: Value) -> None:
    """Sleep until woken, unless there is a reason not to: the sleeper registers, then looks again, under the lock.

    A benched worker does not register: no step wakes it.
    """
    fn = team.fn
    with locked(team):
        plays = thread.compare("slt", load_atomic(team.at(PLAYERS_AT)))
        one = plays.cast("zext", "i64")
        fn.define("i64", f"atomicrmw add ptr {team.at(SLEEPERS_AT).ref}, i64 {one.ref} seq_cst")
        still = fn.select(plays, _is_idle(team), fn.value("i1", 1))
        with fn.when(still & load_atomic(team.at(QUIT_AT)).compare("eq", 0)):
            fn.call("i32", "@pthread_cond_wait", team.at(CONDITION_AT), team.at(MUTEX_AT))
        fn.define("i64", f"atomicrmw sub ptr {team.at(SLEEPERS_AT).ref}, i64 {one.ref} seq_cst")


def _plan(team: Value, field: int, kind: str = "i64") -> Value:
    return team.at(PLAN_AT + 8 * field).load(kind, 8)


def _entry(team: Value, stage: Value) -> Value:
    return _plan(team, TABLE, "ptr").at(stage * ENTRY_BYTES)


def _own(team: Value, thread: Value) -> Value:
    """A thread's own line; its scratch follows."""
    return _plan(team, AREA, "ptr").at(thread * _plan(team, AREA_BYTES))


def _stage(word: Value) -> Value:
    return (word >> STAGE_AT) & ((1 << STAGE_BITS) - 1)


def _is_idle(team: Value) -> Value:
    return _stage(load_atomic(team.at(WORD_AT))).compare("eq", _plan(team, COUNT))


def _rows(flags: Value, step: Value) -> Value:
    """Token rows a stage serves: all of the step's, or those whose logits are asked for."""
    fn = flags.fn
    wanted = (flags & LOGITS_ONLY).compare("ne", 0)
    at = fn.select(wanted, fn.value("i64", 4), 0)
    return step.at(at).load("i32").cast("sext", "i64")
