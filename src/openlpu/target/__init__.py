"""A graph or a program in; something that runs out."""

from openlpu._base.registry import Registry

TARGETS = Registry("target", {
    "cpu": "openlpu.target.cpu.run:load",
    "chip": "openlpu.target.chip.run:load",
    "ref": "openlpu.target.ref.run:load",
})
