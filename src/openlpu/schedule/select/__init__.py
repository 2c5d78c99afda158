"""Integer operators in; vector operations on an :class:`~openlpu.schedule.assembler.Assembler` out."""
