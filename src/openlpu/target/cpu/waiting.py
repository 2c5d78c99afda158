"""What a thread does while it has no tile: native code that fetches, watches the clock, gives way, sleeps.

A thread that waits in a step first asks for the weights it will read next, so that memory is never idle; then it
spins.  It measures how long it has waited for one and the same tile.  When that is far longer than its own work
since it last waited, another thread was taken off its core while it held the tile: the waiting thread gives way by
short sleeps, which lets the system move the other thread to this core, and counts a *strike*.  Two strikes within
``MEMORY`` send the last playing worker to the *bench*, asleep, so that fewer threads meet on the cores that are
free.  It returns after a while; struck before it has played as long as it sat out, it sits out twice as long.  Tiles
are claimed by whoever plays, so none of this can change a bit.

Times are nanoseconds of the monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from openlpu.target.cpu.emit import Function, Value

# The shared block: the word, the count of finished tiles, what waiting needs, each on cache lines of their own.
WORD_AT, DONE_AT = 0, 128
SLEEPERS_AT, QUIT_AT, PLAYERS_AT, RETURN_AT, PENALTY_AT, STRIKE_AT = 256, 264, 272, 280, 288, 296
MUTEX_AT, CONDITION_AT, PLAN_AT = 384, 512, 640
TEAM_BYTES = 768
# A thread's own line: the list it fetches, where it is in it, when it last looked at the clock, when patience ends.
LIST_AT, PIECE_AT, OFFSET_AT, LOOKED_AT, DEADLINE_AT = 0, 8, 16, 24, 32
SEGMENT_AT = 128  # the word of its segment, on a line of its own: others take tiles from it
OWN_BYTES = 256

AHEAD_AT = 32  # in a stage's entry: per thread, the list of pieces it fetches while the stage is finished
PIECE_BYTES = 24  # where the address of a matrix stands, offset, size; a size of 0 ends the list
BURST = 16  # cache lines asked for between two looks at the word
LOOK = 64  # turns of waiting between two looks at the clock: about a microsecond
YIELD_AFTER = 256  # turns
US, MS = 1_000, 1_000_000
STALL, NAP, MEMORY = 200 * US, 50 * US, 50 * MS
FIRST_PENALTY, LONGEST_PENALTY = 10 * MS, 1000 * MS

DECLARES = """declare i32 @sched_yield()
declare i32 @clock_gettime(i32, ptr)
declare i32 @nanosleep(ptr, ptr)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)
"""


def text(pause: str) -> str:
    """All functions of this file; ``pause`` is the processor's spin hint as an IR line, or empty."""
    functions = [_clock(), _fetch(), _wait(pause), _watch(), _strike(), _recall(), _wake()]
    return DECLARES + "".join(fn.text() for fn in functions)


def _clock() -> Function:
    fn = Function("clock", "internal i64", [])
    at = fn.slot("<2 x i64>").pointer
    fn.call("i32", "@clock_gettime", fn.value("i32", time.CLOCK_MONOTONIC), at)
    now = at.load("i64", 8) * 1_000_000_000 + at.at(8).load("i64", 8)
    fn.line(f"ret i64 {now.ref}")
    return fn


def _fetch() -> Function:
    """Ask for the next few lines of the thread's list of a stage; returns 0 when there is none left."""
    fn = Function("fetch", "internal i64", [("ptr", "own"), ("ptr", "entry"), ("i64", "thread")])
    own, none, some = fn.params["own"], fn.label(), fn.label()
    ahead = fn.params["entry"].at(AHEAD_AT).load("i64", 8)
    fn.branch(ahead.compare("eq", 0), none, some)
    fn.start(some)
    first = (ahead + fn.params["thread"] * 8).cast("inttoptr", "ptr").load("i64", 8)
    with fn.when(own.at(LIST_AT).load("i64", 8).compare("ne", first)):
        for field, value in ((LIST_AT, first), (PIECE_AT, first), (OFFSET_AT, fn.value("i64", 0))):
            own.at(field).store(value, 8)
    piece = own.at(PIECE_AT).load("ptr", 8)
    size, fetch = piece.at(16).load("i64", 8), fn.label()
    fn.branch(size.compare("eq", 0), none, fetch)
    fn.start(fetch)
    offset = own.at(OFFSET_AT).load("i64", 8)
    start = piece.load("ptr", 8).load("ptr", 8).at(piece.at(8).load("i64", 8))
    for line in range(BURST):
        where = start.at(offset).at(64 * line)
        fn.call("void", "@llvm.prefetch", where, *(fn.value("i32", word) for word in (0, 2, 1)))
    after = offset + 64 * BURST
    over = after.compare("sge", size)
    own.at(OFFSET_AT).store(fn.select(over, fn.value("i64", 0), after), 8)
    step = fn.select(over, fn.value("i64", PIECE_BYTES), 0)
    own.at(PIECE_AT).store(piece.at(step), 8)
    fn.line("ret i64 1")
    fn.start(none)
    fn.line("ret i64 0")
    return fn


def _wait(pause: str) -> Function:
    """One turn of waiting in a step; ``turn`` counts those in which nothing changed."""
    params = [("ptr", "team"), ("ptr", "own"), ("ptr", "entry"), ("i64", "thread"), ("i64", "turn")]
    fn = Function("wait", "internal void", params)
    p = fn.params
    fetched = fn.call("i64", "@fetch", p["own"], p["entry"], p["thread"])
    if pause:
        with fn.when(fetched.compare("eq", 0)):
            fn.line(pause)
    with fn.when((p["turn"] & (LOOK - 1)).compare("eq", LOOK - 1)):
        fn.call("void", "@watch", p["team"], p["own"], p["turn"])
    fn.line("ret void")
    return fn


def _watch() -> Function:
    """Look at the clock: give way, first the core for a moment, then for good."""
    fn = Function("watch", "internal void", [("ptr", "team"), ("ptr", "own"), ("i64", "turn")])
    own, turn = fn.params["own"], fn.params["turn"]
    now = fn.call("i64", "@clock")
    with fn.when(turn.compare("eq", LOOK - 1)):
        work = now - own.at(LOOKED_AT).load("i64", 8)
        own.at(DEADLINE_AT).store(now + work + STALL, 8)
    own.at(LOOKED_AT).store(now, 8)
    deadline = own.at(DEADLINE_AT).load("i64", 8)
    with fn.when(now.compare("sgt", deadline)):
        with fn.when(deadline.compare("ne", 0)):
            fn.call("void", "@strike", fn.params["team"], now)
        own.at(DEADLINE_AT).store(fn.value("i64", 0), 8)  # every later look is late, and counts no more
        moment = fn.slot("<2 x i64>").pointer
        moment.store(fn.value("i64", 0), 8)
        moment.at(8).store(fn.value("i64", NAP), 8)
        fn.call("i32", "@nanosleep", moment, Value(fn, "ptr", "null"))
    with fn.when(turn.compare("sgt", YIELD_AFTER)):
        fn.call("i32", "@sched_yield")
    fn.line("ret void")
    return fn


def _strike() -> Function:
    """A tile was held up, noticed at ``now``: the second time in a short while sends a worker to the bench."""
    fn = Function("strike", "internal void", [("ptr", "team"), ("i64", "now")])
    team, now = fn.params["team"], fn.params["now"]
    with locked(team):
        gap = now - team.at(STRIKE_AT).load("i64", 8)
        team.at(STRIKE_AT).store(now, 8)
        penalty = team.at(PENALTY_AT)
        memory = penalty.load("i64", 8)
        memory = fn.select(memory.compare("slt", MEMORY), MEMORY, memory)
        with fn.when(gap.compare("sge", memory)):
            penalty.store(fn.value("i64", FIRST_PENALTY), 8)
        # Two threads that wait for the same tile notice it within a millisecond: that is one strike.
        with fn.when(gap.compare("sge", MS) & gap.compare("slt", memory)):
            longer = penalty.load("i64", 8) << 1
            longer = fn.select(longer.compare("sgt", LONGEST_PENALTY), LONGEST_PENALTY, longer)
            penalty.store(longer, 8)
            team.at(RETURN_AT).store(now + longer, 8)
            fewer = load_atomic(team.at(PLAYERS_AT)) - 1
            store_atomic(team.at(PLAYERS_AT), fn.select(fewer.compare("slt", 1), 1, fewer))
    fn.line("ret void")
    return fn


def _recall() -> Function:
    """Let one worker return from the bench if its time is over, on probation."""
    fn = Function("recall", "internal void", [("ptr", "team")])
    team = fn.params["team"]
    now = fn.call("i64", "@clock")
    with fn.when(now.compare("sge", team.at(RETURN_AT).load("i64", 8))):
        with locked(team):
            store_atomic(team.at(PLAYERS_AT), load_atomic(team.at(PLAYERS_AT)) + 1)
            team.at(RETURN_AT).store(now + team.at(PENALTY_AT).load("i64", 8), 8)
            team.at(STRIKE_AT).store(now, 8)
        fn.call("void", "@wake", team)
    fn.line("ret void")
    return fn


def _wake() -> Function:
    """Wake whoever sleeps; they look for themselves whether they are meant."""
    fn = Function("wake", "internal void", [("ptr", "team")])
    with locked(fn.params["team"]):
        fn.call("i32", "@pthread_cond_broadcast", fn.params["team"].at(CONDITION_AT))
    fn.line("ret void")
    return fn


@contextmanager
def locked(team: Value) -> Iterator[None]:
    """Code that one thread runs at a time."""
    team.fn.call("i32", "@pthread_mutex_lock", team.at(MUTEX_AT))
    yield
    team.fn.call("i32", "@pthread_mutex_unlock", team.at(MUTEX_AT))


def load_atomic(at: Value) -> Value:
    """A 64-bit load in one order with all others."""
    return at.fn.define("i64", f"load atomic i64, ptr {at.ref} seq_cst, align 8")


def store_atomic(at: Value, value: Value) -> None:
    """A 64-bit store in one order with all others."""
    at.fn.line(f"store atomic i64 {value.ref}, ptr {at.ref} seq_cst, align 8")
