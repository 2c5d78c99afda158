"""Row work of a mixture of experts: a token's weights, its rows among the experts' rows, and their sum.

Every token writes its own rows: where a group begins follows from the weights of all tokens of the step, which are
read again for each.  ``places`` has a token's rows in ascending order of experts, and -1 where a chosen expert has the
weight 0; ``starts`` has the first row of each expert, and behind the last one the number of all rows.
"""

from __future__ import annotations

from openlpu.target.cpu.elementwise import exp, reciprocal
from openlpu.target.cpu.emit import Value, pair, split, vec
from openlpu.target.cpu.linear import code_stride, value_stride
from openlpu.target.cpu.rows import Op, RowKernel

LINE = vec("i8", 64)


class MixtureRows(RowKernel):
    """Row stages, with the operators of a mixture."""

    def _route(self, op: Op) -> None:
        """Weights of the experts: how many go before an expert decides whether it is chosen."""
        fn, experts, chosen = self.fn, op.number("size"), op.number("chosen")
        logits, out = self.value(op, "x", experts), self.value(op, "out", experts)
        self._amax(logits, experts)  # reports what is refused
        top, total = fn.slot("float", logits.load("float")), fn.slot("float", 0.0)
        with fn.loop(experts) as i:
            top.set(pair(top.get(), logits.at(i * 4).load("float"), "fmax"))
        taken = fn.slot("i64")  # no more than there is room for, even among NaN
        with fn.loop(experts) as i:
            mine, before = logits.at(i * 4).load("float"), fn.slot("i64")
            with fn.loop(experts) as j:
                other = logits.at(j * 4).load("float")
                ahead = other.compare("ogt", mine) | (other.compare("oeq", mine) & j.compare("slt", i))
                before.set(before.get() + ahead.cast("zext", "i64"))
            yes = before.get().compare("slt", chosen) & taken.get().compare("slt", chosen)
            taken.set(taken.get() + yes.cast("zext", "i64"))
            size = fn.select(yes, exp(mine - top.get()), 0.0)
            out.at(i * 4).store(size)
            total.set(total.get() + size)
        inverse = reciprocal(total.get())
        with fn.loop(experts) as i:
            out.at(i * 4).store(out.at(i * 4).load("float") * inverse)

    def _group(self, op: Op) -> None:
        """Copy the token's codes to a row of each of its experts, and note which rows these are."""
        fn, experts = self.fn, op.number("experts")
        weights, starts = self.pointer(op, "weights"), self.pointer(op, "starts")
        places, none = self.value(op, "places", op.number("chosen")), fn.value("i32", -1)
        for i in range(op.number("chosen")):
            places.at(4 * i).store(none)
        begin, found = fn.slot("i64"), fn.slot("i64")
        with fn.loop(experts) as expert:
            above, count = fn.slot("i64"), fn.slot("i64")
            with fn.loop(fn.params["rows"]) as row:
                one = _chosen(weights, row, expert, experts).cast("zext", "i64")
                count.set(count.get() + one)
                above.set(above.get() + (one & row.compare("slt", self.row).cast("zext", "i64")))
            with fn.when(self.row.compare("eq", 0)):
                starts.at(expert * 4).store(begin.get().cast("trunc", "i32"))
            with fn.when(_chosen(weights, self.row, expert, experts)):
                place = begin.get() + above.get()
                places.at(found.get() * 4).store(place.cast("trunc", "i32"))
                self._copy(op, place)
                found.set(found.get() + 1)
            begin.set(begin.get() + count.get())
        with fn.when(self.row.compare("eq", 0)):
            starts.at(4 * experts).store(begin.get().cast("trunc", "i32"))

    def _copy(self, op: Op, place: Value) -> None:
        stride = code_stride(self.path, op.number("size"), op.number("wide"))
        source, target = self.pointer(op, "codes").at(self.row * stride), self.pointer(op, "out").at(place * stride)
        with self.fn.loop(stride // 64) as line:
            target.at(line * 64).store(source.at(line * 64).load(LINE, 64), 64)
        meta, kind = self.pointer(op, "meta").at(self.row * 16), vec("i32", 4)
        self.pointer(op, "out_meta").at(place * 16).store(meta.load(kind, 16), 16)

    def _coded(self, op: Op) -> None:
        """Quantize each of the token's rows, with a scale of its own."""
        token, places = self.row, self.value(op, "places", op.number("chosen"))
        with self.fn.loop(op.number("chosen")) as i:
            place = places.at(i * 4).load("i32").cast("sext", "i64")
            with self.fn.when(place.compare("sge", 0)):
                self.row = place
                self._quantize(op)
                self.row = token

    def _mix(self, op: Op) -> None:
        """Σ weight * row over the token's experts in ascending order, from +0."""
        fn, size, experts = self.fn, op.number("size"), op.number("experts")
        weights, places = self.pointer(op, "weights"), self.value(op, "places", op.number("chosen"))
        rows, out, found = self.pointer(op, "x"), self.value(op, "out", size), fn.slot("i64")
        for i, lanes in fn.chunks(size):
            out.at(i * 4).store(fn.value(vec("float", lanes), 0.0))
        with fn.loop(experts) as expert, fn.when(_chosen(weights, self.row, expert, experts)):
            place = places.at(found.get() * 4).load("i32").cast("sext", "i64")
            weight = weights.at(self.row * (4 * value_stride(experts)) + expert * 4).load("float")
            part = rows.at(place * (4 * value_stride(size)))
            self._map(size, out, lambda sum_, x: sum_ + weight.splat(split(x.kind)[1]) * x, out, part)
            found.set(found.get() + 1)


def _chosen(weights: Value, row: Value, expert: Value, experts: int) -> Value:
    """Whether a row has a weight for an expert; a NaN counts, and is refused where it arrives."""
    return weights.at(row * (4 * value_stride(experts)) + expert * 4).load("float").compare("une", 0.0)
